"""Attention with clipped relative positions against its plain twin, in values and gradients."""

import pytest
import torch

from lsp.models.layers import sight
from lsp.models.layers.clipped_attention import clipped_attention, sinusoids
from lsp.models.layers.dense_relative import dense_clipped_attention
from lsp.models.layers.sight import make_sight
from tests.models.largest_tensor import LargestTensor

torch.set_num_threads(1)

ROWS, HEADS, SIZE = 2, 2, 4
LENGTHS = {"one position": 1, "short": 7, "some blocks": 300}
REACHES = {"all is far": 1, "near and far": 40, "all is near": 400}


def make(length, dtype=torch.float64):
    """Queries, keys and values."""
    torch.manual_seed(0)
    shape = (ROWS, HEADS, length, SIZE)
    numbers = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in "qkv")
    return [x.requires_grad_() for x in numbers]


def documents(length):
    ids = torch.randint(0, 3, (ROWS, length)).sort(1).values
    return ids.masked_fill(torch.rand(ROWS, length) < 0.1, -1)


def with_gradients(out, leaves):
    torch.manual_seed(1)
    weights = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


def attend(inputs, table, *, causal=False, document_BL=None, **dropout):
    seen = make_sight(
        inputs[0].shape[2],
        0,
        reach=None,
        device=torch.device("cpu"),
        document_BE=document_BL,
        causal=causal,
    )
    return clipped_attention(*inputs, table, seen, **dropout)


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("length", LENGTHS)
def test_is_its_plain_twin(monkeypatch, length, reach, causal, packed):
    if length == "some blocks":
        monkeypatch.setattr(sight, "CPU_BLOCK", 128 * 50)  # in parts of 50 keys
    inputs = make(LENGTHS[length])
    table = torch.randn(2 * REACHES[reach] + 1, SIZE, dtype=torch.float64)
    options = {
        "causal": causal,
        "document_BL": documents(LENGTHS[length]) if packed else None,
    }
    got, want = attend(inputs, table, **options), dense_clipped_attention(*inputs, table, **options)
    for one, other in zip(with_gradients(got, inputs), with_gradients(want, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_gradients_are_finite_differences():
    inputs = [x[:1, :1].detach().requires_grad_() for x in make(9)]
    table, document_BL = sinusoids(3, SIZE).double(), torch.tensor([[0] * 4 + [1] * 3 + [-1] * 2])
    assert torch.autograd.gradcheck(
        lambda *qkv: attend(qkv, table, document_BL=document_BL), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_number_formats(dtype):
    inputs, table = make(200, dtype), sinusoids(16, SIZE)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    got = with_gradients(attend(inputs, table), inputs)
    want = with_gradients(dense_clipped_attention(*exact, table.double()), exact)
    close = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=0, atol=close)


def test_dropout_is_replayed_and_scaled():
    inputs, table = make(140), sinusoids(16, SIZE).double()
    ones = [*inputs[:2], torch.ones_like(inputs[2])]
    quiet = torch.zeros_like(table)
    first, again = (attend(ones, quiet, dropout=0.25, dropout_seed=3) for _ in "12")
    assert torch.equal(first, again)
    assert float(first.detach().mean()) == pytest.approx(1, abs=0.02)
    other = attend(ones, quiet, dropout=0.25, dropout_seed=4)
    assert not torch.equal(first, other)
    # What was dropped in the forward pass is dropped in the backward: the output is linear in v.
    out = attend(inputs, table, dropout=0.25, dropout_seed=3)
    weights = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, inputs[2], weights)
    moved = [*inputs[:2], inputs[2] + 1]
    change = (attend(moved, table, dropout=0.25, dropout_seed=3) - out) * weights
    torch.testing.assert_close(change.sum(), grad.sum())


def test_nothing_of_pairs_of_positions_exists_for_all_heads():
    length, heads = 1024, 8
    inputs = [torch.randn(1, heads, length, SIZE, requires_grad=True) for _ in "qkv"]
    with LargestTensor() as seen:
        attend(inputs, sinusoids(64, SIZE)).sum().backward()
    assert seen.largest < length * length


def test_the_table_is_that_of_the_paper():
    table = sinusoids(2, 6)
    place = torch.arange(5.0)
    for column in range(6):
        angle = place / 10000 ** (2 * (column // 2) / 6)
        expected = angle.cos() if column % 2 else angle.sin()
        torch.testing.assert_close(table[:, column], expected)
