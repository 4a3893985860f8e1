"""Attention piece by piece equals attention with (L × L) masks, of documents and chunks."""

import pytest
import torch

from lsp.models.layers import group_attention as module
from lsp.models.layers.dense_mega import dense_group_attention
from lsp.models.layers.group_attention import group_attention, make_groups
from tests.models.largest_tensor import LargestTensor
from tests.models.layers.test_moving_average import segments

torch.set_num_threads(1)

LENGTH = 96
PACKINGS = {
    "one document": None,
    "documents": [3, 4, 30, 31],
    "on chunks": [32, 16, 16],
    "padding": [-5, 30, -3, 20, -38],
}
ACTIVATIONS = ("softmax", "laplace", "relu2")


def inputs(length, reach):
    generator = torch.Generator().manual_seed(length)
    options = {"generator": generator, "dtype": torch.double}
    q, k = (torch.randn(2, length, 4, **options) for _ in range(2))
    v, bias = torch.randn(2, length, 6, **options), torch.randn(2 * reach + 1, **options)
    return [tensor.requires_grad_() for tensor in (q, k, v, bias)]


def packed(packing, length):
    sizes = PACKINGS[packing]
    if sizes is None:
        return None
    return torch.stack([segments(sizes, length), segments([length], length)])


def both(tensors, ids, chunk, causal, activation):
    rows, length = tensors[0].shape[:2]
    device = torch.device("cpu")
    groups = make_groups(rows, length, ids, chunk=chunk, causal=causal, device=device)
    got = group_attention(*tensors, groups, activation=activation)
    want = dense_group_attention(
        *tensors, chunk=chunk, causal=causal, activation=activation, segment_ids_BL=ids
    )
    return got, want


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("chunk", [None, 16], ids=["whole", "chunks"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_it_is_dense_attention(packing, chunk, causal, activation, monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 20)
    tensors = inputs(LENGTH, (chunk or LENGTH) - 1)
    got, want = both(tensors, packed(packing, LENGTH), chunk, causal, activation)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad(got, tensors, grad),
        torch.autograd.grad(want, tensors, grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 7, 33])
def test_a_last_chunk_that_is_not_full(length):
    tensors = inputs(length, min(length, 16) - 1)
    for activation in ACTIVATIONS:
        got, want = both(tensors, None, 16, True, activation)
        torch.testing.assert_close(got, want)


def test_pieces_are_within_their_budget(monkeypatch):
    monkeypatch.setattr(module, "CPU_SCORES", 4 * 16 * 16)
    groups = make_groups(2, 256, None, chunk=16, causal=False, device=torch.device("cpu"))
    pieces = groups.pieces(32, "cpu")
    assert [piece.rows.stop - piece.rows.start for piece in pieces] == [4] * 8
    ids = torch.stack([segments([100], 1000)] * 2)
    groups = make_groups(2, 1000, ids, chunk=64, causal=False, device=torch.device("cpu"))
    widest = max(piece.keys.stop - piece.keys.start for piece in groups.pieces(2, "cpu"))
    assert widest <= module.QUERIES + 2 * 64


@pytest.mark.parametrize("packing", ["one document", "documents"])
def test_scores_of_chunks_do_not_grow_with_the_row_squared(packing):
    largest = []
    for length in (1024, 4096):
        tensors = [x.detach().float().requires_grad_() for x in inputs(length, 15)]
        ids = packed(packing, length)
        groups = make_groups(2, length, ids, chunk=16, causal=False, device=torch.device("cpu"))
        with LargestTensor() as watch:
            out = group_attention(*tensors, groups, activation="laplace")
            torch.autograd.grad(out.sum(), tensors)
        largest.append(watch.largest)
    assert largest[1] <= max(4 * largest[0], module.CPU_SCORES)


def test_dropout_is_replayed_in_the_backward():
    tensors = inputs(LENGTH, 15)
    groups = make_groups(2, LENGTH, None, chunk=16, causal=False, device=torch.device("cpu"))

    def attend(seed):
        options = {"activation": "softmax", "dropout": 0.4, "dropout_seed": seed}
        return group_attention(*tensors, groups, **options)

    assert torch.equal(attend(3), attend(3))
    assert not torch.equal(attend(3), attend(4))
    v = tensors[2]
    (grad,) = torch.autograd.grad(attend(3).sum(), v)
    # The output is linear in values, so the gradient's product with them is the output's sum.
    torch.testing.assert_close((grad * v).sum(), attend(3).sum())
