"""LSH attention equals its dense twin and the published layer, and documents stay apart."""

import itertools
import logging

import pytest
import torch
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from lsp.core.errors import UserError
from lsp.models.layers.dense import dense_lsh_attention
from lsp.models.layers.lsh import (
    automatic_num_buckets,
    hash_buckets,
    lsh_attention,
    random_rotations,
    sorted_order,
)
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
logging.getLogger("transformers").setLevel(logging.ERROR)


def _window(name: str) -> dict[str, int]:
    return dict(zip(("chunk_length", "chunks_before", "chunks_after"), WINDOWS[name], strict=True))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_ways"])
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", SEGMENTS)
def test_equals_dense_twin(monkeypatch, name: str, window: str, blocks, causal: bool):
    set_blocks(monkeypatch, blocks)
    inputs, ids = vectors(2), segments(name)
    for rounds in (1, 3):
        buckets = hash_buckets(inputs[0], [4, 2], rounds, seed=3, segment_ids_BL=ids)
        options = {**_window(window), "causal": causal, "segment_ids_BL": ids}
        fast = with_gradients(lsh_attention(*inputs, buckets, **options), inputs)
        twin = with_gradients(dense_lsh_attention(*inputs, buckets, **options), inputs)
        for ours, want in zip(fast, twin, strict=True):
            torch.testing.assert_close(ours, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["none", "packed_padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.4], ids=["plain", "dropout"])
def test_gradcheck(name: str, dropout: float):
    inputs = [x[:, :2, :32, :3].detach().contiguous().requires_grad_() for x in vectors(2)]
    ids = segments(name)
    buckets = hash_buckets(inputs[0], 4, 2, seed=3, segment_ids_BL=ids)

    def attend(qk: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return lsh_attention(
            qk,
            v,
            buckets,
            chunk_length=8,
            causal=True,
            segment_ids_BL=ids,
            dropout=dropout,
            dropout_seed=9,
        )

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize("wanted", [0, 1], ids=["queries", "values"])
def test_one_gradient_alone(wanted: int):
    inputs = vectors(2)
    buckets = hash_buckets(inputs[0], 4, 2, seed=3)
    options = {"chunk_length": 4, "causal": True}
    both = torch.autograd.grad(lsh_attention(*inputs, buckets, **options).sin().sum(), inputs)
    inputs[1 - wanted] = inputs[1 - wanted].detach()
    out = lsh_attention(*inputs, buckets, **options)
    (alone,) = torch.autograd.grad(out.sin().sum(), inputs[wanted : wanted + 1])
    assert torch.equal(alone, both[wanted])


PUBLISHED = [
    *itertools.product([True, False], [1, 3], [8, [4, 4]], ["none", "padded", "padded_left"], [4]),
    *itertools.product([True, False], [2], [None], ["none", "padded"], [4, 32]),
]


@pytest.mark.parametrize(
    ("causal", "rounds", "num_buckets", "name", "chunk"),
    PUBLISHED,
    ids=lambda value: str(value).replace(" ", ""),
)
def test_equals_published_layer(causal, rounds, num_buckets, name, chunk):
    heads, size, length = 2, 8, 32
    for before, after in ((1, 0), (1, 1), (0, 0), (2, 1)):
        config = ReformerConfig(
            hidden_size=16,
            num_attention_heads=heads,
            attention_head_size=size,
            is_decoder=causal,
            num_hashes=rounds,
            num_buckets=num_buckets,
            hash_seed=7,
            lsh_attn_chunk_length=chunk,
            lsh_num_chunks_before=before,
            lsh_num_chunks_after=after,
            lsh_attention_probs_dropout_prob=0.0,
        )
        torch.manual_seed(0)
        layer = LSHSelfAttention(config, 0)
        for weight in layer.parameters():
            torch.nn.init.normal_(weight, std=0.4)
        x, ids = torch.randn(2, length, 16, requires_grad=True), segments(name)
        published = layer(x, attention_mask=ids)
        inputs = [x, *layer.parameters()]
        want = with_gradients(published.hidden_states, inputs)

        qk, v = (
            linear(x).unflatten(-1, (heads, size)).transpose(1, 2)
            for linear in (layer.query_key, layer.value)
        )
        limit = config.max_position_embeddings
        chosen = num_buckets or automatic_num_buckets(length, chunk, limit)
        buckets = hash_buckets(qk, chosen, rounds, seed=7, segment_ids_BL=ids)
        out = lsh_attention(
            qk,
            v,
            buckets,
            chunk_length=chunk,
            chunks_before=before,
            chunks_after=after,
            causal=causal,
            segment_ids_BL=ids,
        )
        ours = with_gradients(out.transpose(1, 2).flatten(2), inputs)
        for mine, theirs in zip(ours, want, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5 * theirs.abs().max().item())
        if published.buckets is not None:
            # Theirs are numbered on from round to round.
            step = published.buckets.new_tensor(chosen).prod() + int(name != "none")
            offset = torch.arange(rounds)[:, None] * step
            assert torch.equal(published.buckets - offset, buckets.long())
            assert num_buckets is not None or config.num_buckets == chosen


@pytest.mark.parametrize("length", [4096, 16384, 65536, 524288])
@pytest.mark.parametrize("chunk", [32, 64, 256])
def test_automatic_buckets_are_the_published_ones(length: int, chunk: int):
    config = ReformerConfig(
        lsh_attn_chunk_length=chunk, max_position_embeddings=length, num_buckets=None
    )
    layer = LSHSelfAttention(config, 0)
    layer._set_num_buckets(length)
    assert automatic_num_buckets(length, chunk, length) == config.num_buckets


def test_rotations_are_the_published_ones_and_leave_the_global_generator_alone():
    inputs = vectors(2)
    before = torch.get_rng_state()
    ours = random_rotations(3, 8, 2, 16, seed=42)
    buckets = hash_buckets(inputs[0], 8, 2, seed=1)
    out = lsh_attention(*inputs, buckets, chunk_length=4, causal=True, dropout=0.5, dropout_seed=3)
    out.sum().backward()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(42)
    assert torch.equal(ours, torch.randn(3, 8, 2, 8))


def test_a_group_of_heads_hashes_as_in_the_layer():
    qk = vectors(1)[0]
    whole = hash_buckets(qk, [4, 8], 3, seed=1)
    group = hash_buckets(qk[:, 1:3], [4, 8], 3, seed=1, first_head=1, of_heads=4)
    assert torch.equal(group, whole[:, 1:3])


@pytest.mark.parametrize(
    ("num_buckets", "dtype"),
    [(2, torch.uint8), ([16, 14], torch.uint8), ([16, 16], torch.int16), ([256, 256], torch.int32)],
    ids=str,
)
def test_buckets_are_stored_small(num_buckets, dtype):
    ids = segments("packed_padded")
    buckets = hash_buckets(vectors(1)[0], num_buckets, 1, seed=0, segment_ids_BL=ids)
    total = num_buckets if isinstance(num_buckets, int) else num_buckets[0] * num_buckets[1]
    assert buckets.dtype == dtype
    padding = (ids == 0)[:, None, None].expand(buckets.shape)
    assert (buckets[padding].long() == total).all()
    assert (buckets[~padding].long() < total).all()


@pytest.mark.parametrize("num_buckets", [7, [4, 3], 0, [-2, 4]], ids=str)
def test_odd_buckets_are_refused(num_buckets):
    with pytest.raises(UserError, match="num_buckets"):
        hash_buckets(vectors(1)[0], num_buckets, 1, seed=0)


def test_indivisible_length_is_refused():
    inputs = vectors(2)
    with pytest.raises(UserError, match=r"lsh_attn_chunk_length=5 .* 30 or 35"):
        lsh_attention(*inputs, None, chunk_length=5, causal=True)


@pytest.mark.parametrize("rounds", [1, 3])
def test_documents_fill_their_own_slots(rounds: int):
    ids = segments("packed_padded")
    buckets = hash_buckets(vectors(1)[0], 8, rounds, seed=2, segment_ids_BL=ids)
    document = torch.tensor([[0] * 12 + [1] * 20, [0] * 3 + [1] * 29])
    order = sorted_order(buckets, document).long()
    row_documents = document[:, None, None].expand(order.shape)
    assert torch.equal(row_documents.gather(-1, order), row_documents)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_ways"])
@pytest.mark.parametrize("name", ["packed", "packed_padded"])
@pytest.mark.parametrize("document", [1, 2])
def test_documents_do_not_see_each_other(causal: bool, name: str, document: int):
    ids = segments(name)

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        buckets = hash_buckets(inputs[0], 8, 2, seed=4, segment_ids_BL=ids)
        return lsh_attention(
            *inputs,
            buckets,
            chunk_length=4,
            chunks_before=1,
            chunks_after=1,
            causal=causal,
            segment_ids_BL=ids,
        )

    assert_documents_stay_apart(attend, 2, ids, document)


def test_padding_changes_nothing_before_it():
    """A document padded to a multiple of the chunk is what it is alone."""
    inputs = vectors(2, dtype=torch.float32)
    ids = torch.tensor([[1] * 16 + [2] * 16] * 2)
    alone = [x[:, :, 16:].detach() for x in inputs]
    options = {"chunk_length": 4, "chunks_before": 0, "causal": True}
    packed = lsh_attention(
        *inputs,
        hash_buckets(inputs[0], 4, 1, seed=4, segment_ids_BL=ids),
        segment_ids_BL=ids,
        **options,
    )
    single = lsh_attention(*alone, hash_buckets(alone[0], 4, 1, seed=4), **options)
    torch.testing.assert_close(packed[:, :, 16:], single)


def test_dropout_is_replayed_and_unbiased():
    qk, v = vectors(2, dtype=torch.float32)
    buckets = hash_buckets(qk, 4, 2, seed=3)

    def attend(rate: float, seed: int | None) -> torch.Tensor:
        return lsh_attention(
            qk, v, buckets, chunk_length=8, causal=False, dropout=rate, dropout_seed=seed
        )

    assert torch.equal(attend(0.3, 1), attend(0.3, 1))
    assert not torch.equal(attend(0.3, 1), attend(0.3, 2))
    mean = torch.stack([attend(0.3, seed) for seed in range(200)]).mean(0)
    torch.testing.assert_close(mean, attend(0.0, None), rtol=0, atol=0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_close(dtype: torch.dtype):
    inputs = vectors(2, dtype=dtype)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    buckets = hash_buckets(wide[0], 4, 2, seed=3)
    options = {"chunk_length": 8, "causal": True, "segment_ids_BL": segments("packed_padded")}
    half = with_gradients(lsh_attention(*inputs, buckets, **options), inputs)
    full = with_gradients(lsh_attention(*wide, buckets, **options), wide)
    for ours, want in zip(half, full, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), want, rtol=0, atol=0.03 * want.abs().max().item())


def test_large_vectors_stay_finite():
    inputs = [(x.detach() * 1e3).float().requires_grad_() for x in vectors(2)]
    buckets = hash_buckets(inputs[0], 4, 2, seed=3)
    out = lsh_attention(*inputs, buckets, chunk_length=8, causal=True)
    assert all(torch.isfinite(x).all() for x in with_gradients(out, inputs))


def test_nothing_of_all_heads_and_rounds_exists():
    length, heads, size, rounds, chunk = 8192, 8, 16, 4, 64
    qk, v = (torch.randn(1, heads, length, size, requires_grad=True) for _ in range(2))
    with LargestTensor() as seen:
        buckets = hash_buckets(qk, [16, 16], rounds, seed=0)
        lsh_attention(qk, v, buckets, chunk_length=chunk, causal=True).sum().backward()
    # The inputs themselves are the largest: scores of all heads would be 32 times that.
    assert seen.largest <= qk.numel()


def test_autocast_changes_nothing():
    inputs = vectors(2, dtype=torch.float32)
    buckets = hash_buckets(inputs[0], 4, 2, seed=3)
    plain = with_gradients(lsh_attention(*inputs, buckets, chunk_length=8, causal=True), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = lsh_attention(*inputs, buckets, chunk_length=8, causal=True)
        cast = with_gradients(out, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
