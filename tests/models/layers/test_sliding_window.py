"""Sliding-window attention equals its dense twin and the published layer; documents stay apart."""

from functools import partial

import pytest
import torch
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from lsp.models.layers import sliding_window
from lsp.models.layers.dense import dense_sliding_window_attention
from lsp.models.layers.sliding_window import sliding_window_attention
from tests.models.largest_tensor import LargestTensor
from tests.models.layers.attention_cases import (
    BLOCKS,
    SEGMENTS,
    assert_documents_stay_apart,
    segments,
    set_blocks,
    vectors,
    with_gradients,
)

torch.set_num_threads(1)

REACHES = {"both": (5, 5), "causal": (7, 0), "before more": (9, 2), "itself": (0, 0)}
REACHES |= {"whole row": (31, 31), "beyond the row": (100, 40)}
GLOBALS = {"none": None, "some": [[0, 10, 11], [31]], "in one row": [[], [3, 20]]}


def everyone_sees(name: str) -> torch.Tensor | None:
    if GLOBALS[name] is None:
        return None
    mask = torch.zeros(2, 32, dtype=torch.bool)
    for row, positions in enumerate(GLOBALS[name]):
        mask[row, positions] = True
    return mask


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(sliding_window, "CHUNK", 4)


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("seen", GLOBALS)
@pytest.mark.parametrize("name", SEGMENTS)
def test_equals_dense_twin(monkeypatch, name: str, seen: str, reach: str, blocks):
    set_blocks(monkeypatch, blocks)
    before, after = REACHES[reach]
    options = {"before": before, "after": after, "segment_ids_BL": segments(name)}
    options["global_BL"] = everyone_sees(seen)
    inputs = vectors(3)
    fast = with_gradients(sliding_window_attention(*inputs, **options), inputs)
    twin = with_gradients(dense_sliding_window_attention(*inputs, **options), inputs)
    for ours, want in zip(fast, twin, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 3, 29])
def test_any_length(length: int):
    inputs = vectors(3, length=length)
    options = {"before": 6, "after": 3}
    fast = with_gradients(sliding_window_attention(*inputs, **options), inputs)
    twin = with_gradients(dense_sliding_window_attention(*inputs, **options), inputs)
    for ours, want in zip(fast, twin, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dropout", [0.0, 0.4], ids=["plain", "dropout"])
def test_gradcheck(dropout: float):
    inputs = [x[:, :2, :, :3].detach().contiguous().requires_grad_() for x in vectors(3)]

    def attend(*qkv: torch.Tensor) -> torch.Tensor:
        return sliding_window_attention(
            *qkv,
            before=5,
            after=5,
            segment_ids_BL=segments("packed_padded"),
            global_BL=everyone_sees("some"),
            dropout=dropout,
            dropout_seed=9,
        )

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["packed", "packed_padded"])
@pytest.mark.parametrize("document", [1, 2])
def test_documents_do_not_see_each_other(name: str, document: int):
    ids = segments(name)
    options = {"before": 9, "after": 9, "segment_ids_BL": ids, "global_BL": everyone_sees("some")}
    assert_documents_stay_apart(partial(sliding_window_attention, **options), 3, ids, document)


@pytest.mark.parametrize("window", [4, 16, 32])
@pytest.mark.parametrize("seen", ["none", "some"])
def test_equals_published_layer(monkeypatch, window: int, seen: str):
    """What global tokens see, with projections of their own, is compared elsewhere."""
    config = LongformerConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        attention_window=[window],
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    layer = LongformerSelfAttention(config, 0)
    learned = [layer.query, layer.key, layer.value]
    for linear in learned:
        torch.nn.init.normal_(linear.weight, std=0.4)
    x = torch.randn(2, 32, 16, requires_grad=True)
    mask = torch.zeros(2, 32)
    mask[0, 25:] = -10000.0
    seen_BL = everyone_sees(seen)
    if seen_BL is not None:
        mask[seen_BL & (mask == 0)] = 10000.0
    inputs = [x, *(linear.weight for linear in learned)]
    published = layer(
        x,
        attention_mask=mask,
        is_index_masked=mask < 0,
        is_index_global_attn=mask > 0,
        is_global_attn=bool((mask > 0).any()),
    )[0]
    own = torch.where((mask > 0)[..., None], 0.0, published)
    out_BNLH = sliding_window_attention(
        *(linear(x).unflatten(-1, (2, 8)).transpose(1, 2) for linear in learned),
        before=window // 2,
        after=window // 2,
        segment_ids_BL=(mask >= 0).long(),
        global_BL=mask > 0,
    )
    ours = torch.where((mask > 0)[..., None], 0.0, out_BNLH.transpose(1, 2).flatten(2))
    for mine, theirs in zip(with_gradients(ours, inputs), with_gradients(own, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5 * theirs.abs().max().item())


def test_no_tensor_of_length_by_window(monkeypatch):
    monkeypatch.setattr(sliding_window, "CHUNK", 64)
    length, window = 4096, 512
    inputs = [x.detach().requires_grad_() for x in vectors(3, length, 1, torch.float32)]
    with LargestTensor() as seen:
        out = sliding_window_attention(*inputs, before=window // 2, after=window // 2)
        out.sum().backward()
    assert seen.largest < length * window / 4
