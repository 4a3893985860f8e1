"""Relative attention with a memory against its plain twin, in values and gradients."""

import pytest
import torch

from lsp.models.layers import sight
from lsp.models.layers.dense_relative import dense_relative_attention
from lsp.models.layers.relative_attention import Distances, relative_attention
from lsp.models.layers.sight import make_sight
from tests.models.largest_tensor import LargestTensor

ROWS, HEADS, SIZE = 2, 2, 4
SHAPES = {"one query": (1, 9), "short": (7, 0), "long": (150, 33), "mostly memory": (20, 130)}
KINDS = ["keys alone", "relative", "learned"]


def numbers(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def make(length, memory, kind="relative", known=500, dtype=torch.float64):
    """Queries, keys, values, what is remembered, and distances; all of them again as a list."""
    torch.manual_seed(0)
    inputs = [numbers(ROWS, length, HEADS, SIZE, dtype=dtype).transpose(1, 2) for _ in "qkv"]
    remembered = None
    if memory:
        remembered = tuple(numbers(ROWS, HEADS, memory, SIZE, dtype=dtype) for _ in "kv")
    distances = None
    if kind != "keys alone":
        r, u, w = (
            numbers(HEADS, known, SIZE, dtype=dtype),
            *(numbers(HEADS, SIZE, dtype=dtype) for _ in "uw"),
        )
        learned = numbers(HEADS, known, dtype=dtype)
        distances = Distances(r, u, w) if kind == "relative" else Distances(r, u, b=learned)
    given = [] if distances is None else [distances.r, distances.u, distances.w, distances.b]
    leaves = [*inputs, *(remembered or ()), *(x for x in given if x is not None)]
    return inputs, {"remembered": remembered, "distances": distances}, leaves


def documents(keys):
    ids = torch.randint(0, 3, (ROWS, keys)).sort(1).values
    return ids.masked_fill(torch.rand(ROWS, keys) < 0.1, -1)


def with_gradients(out, leaves):
    torch.manual_seed(1)
    weights = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


def attend(inputs, options, length, memory, *, reach=None, document_BE=None, **dropout):
    seen = make_sight(
        length, memory, reach=reach, device=torch.device("cpu"), document_BE=document_BE
    )
    return relative_attention(*inputs, seen, **options, **dropout)


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("reach", [None, 20], ids="reach {}".format)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_its_plain_twin(monkeypatch, shape, kind, reach, packed):
    if shape == "long" and kind == "relative":
        monkeypatch.setattr(sight, "CPU_BLOCK", 128 * 40)  # in parts of 40 keys
    length, memory = SHAPES[shape]
    inputs, options, leaves = make(length, memory, kind, known=3 if packed else 500)
    document_BE = documents(length + memory) if packed else None
    masks = {"reach": reach, "document_BE": document_BE}
    got = attend(inputs, options, length, memory, **masks)
    want = dense_relative_attention(*inputs, **options, **masks)
    pairs = zip(with_gradients(got, leaves), with_gradients(want, leaves), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_a_token_that_sees_itself_alone():
    inputs, options, _ = make(70, 10)
    torch.testing.assert_close(attend(inputs, options, 70, 10, reach=0), inputs[2])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_finite_differences(kind):
    inputs, options, leaves = make(3, 2, kind, known=3)
    document_BE = torch.tensor([[0, 0, 0, 1, 1], [-1, 0, 0, 0, -1]])

    def function(*_):
        return attend(inputs, options, 3, 2, reach=3, document_BE=document_BE)

    assert torch.autograd.gradcheck(function, leaves)


def test_dropped_weights_are_dropped_again_in_the_backward_pass():
    inputs, options, leaves = make(3, 2, known=4)
    draws = {"dropout": 0.5, "dropout_seed": 7}

    def function(*_):
        return attend(inputs, options, 3, 2, **draws)

    plain = attend(inputs, options, 3, 2)
    assert not torch.equal(function(), plain)
    assert torch.equal(function(), function())
    assert torch.autograd.gradcheck(function, leaves)


def test_dropout_keeps_the_expected_output():
    inputs, options, _ = make(100, 20)
    inputs[2] = torch.ones_like(inputs[2])
    options["remembered"] = options["remembered"][0], torch.ones(ROWS, HEADS, 20, SIZE).double()
    out = attend(inputs, options, 100, 20, dropout=0.25, dropout_seed=3)
    assert abs(float(out.detach().mean()) - 1) < 0.03


def test_documents_stay_apart_bit_for_bit():
    length, memory = 70, 30
    document_BE = torch.cat([torch.arange(100) // 40, torch.full((100,), 5)]).view(2, 100)
    results = []
    for factor in (1.0, 50.0):
        inputs, options, leaves = make(length, memory, dtype=torch.float32)
        with torch.no_grad():
            for x_BNLH in inputs:
                x_BNLH[0, :, 10:50] *= factor  # the second document of the first row
        results.append(
            with_gradients(attend(inputs, options, length, memory, document_BE=document_BE), leaves)
        )
    others = torch.ones(ROWS, length, dtype=torch.bool)
    others[0, 10:50] = False
    for one, other in zip(results[0][:4], results[1][:4], strict=True):
        assert torch.equal(one.transpose(1, 2)[others], other.transpose(1, 2)[others])
        assert not torch.equal(one, other)
    for one, other in zip(results[0][4:6], results[1][4:6], strict=True):
        assert torch.equal(one, other)  # what is remembered belongs to the first document


def test_bfloat16_is_close_to_the_same_numbers_in_fp64():
    low, options, leaves = make(130, 40, dtype=torch.bfloat16)
    inputs, wide, twins = make(130, 40)
    for twin, leaf in zip(twins, leaves, strict=True):
        twin.data = leaf.data.double()
    got = with_gradients(attend(low, options, 130, 40), leaves)
    want = with_gradients(attend(inputs, wide, 130, 40), twins)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.double() - other).norm() / other.norm()) < 0.02


def test_no_scores_of_all_queries_exist():
    length, memory = 1500, 500
    inputs, options, leaves = make(length, memory, known=2000, dtype=torch.float32)
    with LargestTensor() as watch:
        with_gradients(attend(inputs, options, length, memory), leaves)
    assert watch.largest < length * (length + memory) / 8
