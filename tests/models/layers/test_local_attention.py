"""Local attention equals its dense twin and the published layer, and documents stay apart."""

import itertools
from functools import partial

import pytest
import torch
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LocalSelfAttention

from lsp.core.errors import UserError
from lsp.models.layers.dense import dense_local_attention
from lsp.models.layers.local import local_attention
from tests.models.largest_tensor import LargestTensor
from tests.models.layers.attention_cases import (
    BLOCKS,
    SEGMENTS,
    WINDOWS,
    assert_documents_stay_apart,
    segments,
    set_blocks,
    vectors,
    with_gradients,
)

torch.set_num_threads(1)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_ways"])
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", SEGMENTS)
def test_equals_dense_twin(monkeypatch, name: str, window: str, blocks, causal: bool):
    set_blocks(monkeypatch, blocks)
    inputs = vectors(3)
    names = ("chunk_length", "chunks_before", "chunks_after")
    options = dict(zip(names, WINDOWS[window], strict=True))
    options |= {"causal": causal, "segment_ids_BL": segments(name)}
    fast = with_gradients(local_attention(*inputs, **options), inputs)
    twin = with_gradients(dense_local_attention(*inputs, **options), inputs)
    for ours, want in zip(fast, twin, strict=True):
        # 1e9 + log n keeps nine digits less of log n.
        tolerance = 1e-6 if name != "none" else 1e-9
        torch.testing.assert_close(ours, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["none", "packed_padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.4], ids=["plain", "dropout"])
def test_gradcheck(name: str, dropout: float):
    inputs = [x[:, :2, :, :3].detach().contiguous().requires_grad_() for x in vectors(3)]

    def attend(*qkv: torch.Tensor) -> torch.Tensor:
        return local_attention(
            *qkv,
            chunk_length=8,
            causal=True,
            segment_ids_BL=segments(name),
            dropout=dropout,
            dropout_seed=9,
        )

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["queries", "keys", "values"])
def test_one_gradient_alone(wanted: int):
    inputs = vectors(3)
    options = {"chunk_length": 4, "causal": True}
    every = torch.autograd.grad(local_attention(*inputs, **options).sin().sum(), inputs)
    alone = [x if i == wanted else x.detach() for i, x in enumerate(inputs)]
    out = local_attention(*alone, **options)
    (grad,) = torch.autograd.grad(out.sin().sum(), alone[wanted])
    assert torch.equal(grad, every[wanted])


@pytest.mark.parametrize(
    ("causal", "name", "chunk"),
    itertools.product([True, False], ["none", "padded", "padded_left", "padded_inside"], [4, 32]),
)
def test_equals_published_layer(causal: bool, name: str, chunk: int):
    heads, size, length = 2, 8, 32
    for before, after in ((1, 0), (1, 1), (0, 0), (2, 1), (0, 2)):
        config = ReformerConfig(
            hidden_size=16,
            num_attention_heads=heads,
            attention_head_size=size,
            is_decoder=causal,
            local_attn_chunk_length=chunk,
            local_num_chunks_before=before,
            local_num_chunks_after=after,
            local_attention_probs_dropout_prob=0.0,
        )
        torch.manual_seed(0)
        layer = LocalSelfAttention(config, 0)
        for weight in layer.parameters():
            torch.nn.init.normal_(weight, std=0.4)
        x, ids = torch.randn(2, length, 16, requires_grad=True), segments(name)
        inputs = [x, *layer.parameters()]
        want = with_gradients(layer(x, attention_mask=ids).hidden_states, inputs)
        out = local_attention(
            *(
                linear(x).unflatten(-1, (heads, size)).transpose(1, 2)
                for linear in (layer.query, layer.key, layer.value)
            ),
            chunk_length=chunk,
            chunks_before=before,
            chunks_after=after,
            causal=causal,
            segment_ids_BL=ids,
        )
        ours = with_gradients(out.transpose(1, 2).flatten(2), inputs)
        for mine, theirs in zip(ours, want, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5 * theirs.abs().max().item())


def test_indivisible_length_is_refused():
    with pytest.raises(UserError, match=r"local_attn_chunk_length=6 .* 30 or 36"):
        local_attention(*vectors(3), chunk_length=6, causal=True)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_ways"])
@pytest.mark.parametrize("name", ["packed", "packed_padded"])
@pytest.mark.parametrize("document", [1, 2])
def test_documents_do_not_see_each_other(causal: bool, name: str, document: int):
    ids = segments(name)
    options = {"chunk_length": 4, "chunks_before": 2, "chunks_after": 1, "segment_ids_BL": ids}
    attend = partial(local_attention, causal=causal, **options)
    assert_documents_stay_apart(attend, 3, ids, document)


def test_dropout_is_replayed_unbiased_and_leaves_the_global_generator_alone():
    inputs = vectors(3, dtype=torch.float32)
    before = torch.get_rng_state()

    def attend(rate: float, seed: int | None) -> torch.Tensor:
        return local_attention(
            *inputs, chunk_length=8, causal=False, dropout=rate, dropout_seed=seed
        )

    assert torch.equal(attend(0.3, 1), attend(0.3, 1))
    assert not torch.equal(attend(0.3, 1), attend(0.3, 2))
    mean = torch.stack([attend(0.3, seed) for seed in range(200)]).mean(0)
    torch.testing.assert_close(mean, attend(0.0, None), rtol=0, atol=0.2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_close(dtype: torch.dtype):
    inputs = vectors(3, dtype=dtype)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    options = {"chunk_length": 8, "causal": True, "segment_ids_BL": segments("packed_padded")}
    half = with_gradients(local_attention(*inputs, **options), inputs)
    full = with_gradients(local_attention(*wide, **options), wide)
    for ours, want in zip(half, full, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), want, rtol=0, atol=0.03 * want.abs().max().item())


def test_nothing_of_all_heads_exists():
    q, k, v = (torch.randn(1, 16, 8192, 16, requires_grad=True) for _ in range(3))
    with LargestTensor() as seen:
        local_attention(q, k, v, chunk_length=64, causal=True).sum().backward()
    assert seen.largest <= q.numel()


def test_autocast_changes_nothing():
    inputs = vectors(3, dtype=torch.float32)
    plain = with_gradients(local_attention(*inputs, chunk_length=8, causal=True), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = local_attention(*inputs, chunk_length=8, causal=True)
        cast = with_gradients(out, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
