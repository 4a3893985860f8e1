"""Averages block by block equal the recurrence, and nothing passes between documents."""

import pytest
import torch

from lsp.models.layers import moving_average as module
from lsp.models.layers.dense_mega import recurrent_average
from lsp.models.layers.moving_average import (
    BLOCK,
    feature_groups,
    hand_on,
    make_layout,
    moving_average,
    state_after,
)
from tests.models.largest_tensor import LargestTensor

torch.set_num_threads(1)

PACKINGS = {
    "one document": None,
    "documents": [3, 4, 60, 90, 91, 200],
    "at the edges of blocks": [BLOCK, 2 * BLOCK, 2 * BLOCK + 1],
    "padding at the end": [70, -40],
    "padding first and between": [-5, 30, -3, 100],
}


def segments(lengths, length):
    """Documents of so many positions, negative for padding, and one of the rest."""
    row, number = torch.zeros(length, dtype=torch.long), 0
    start = 0
    for size in lengths:
        number += size > 0
        row[start : start + abs(size)] = number if size > 0 else 0
        start += abs(size)
    if lengths[-1] > 0:
        row[start:] = number + 1
    return row


def inputs(length, directions, rows=2):
    generator = torch.Generator().manual_seed(length)
    options = {"generator": generator, "dtype": torch.double}
    x = torch.randn(rows, length, 3, **options)
    decay = -torch.rand(directions, 3, 4, **options) * 0.3
    weight = torch.randn(directions, 3, 4, **options)
    return [tensor.requires_grad_() for tensor in (x, decay, weight)]


@pytest.mark.parametrize("directions", [1, 2], ids=["causal", "both ways"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_it_is_the_recurrence(packing, directions):
    length = 5 * BLOCK + 7
    tensors = inputs(length, directions)
    ids, real = None, 1
    if PACKINGS[packing] is not None:
        ids = torch.stack([segments(PACKINGS[packing], length), segments([length], length)])
        real = (ids != 0)[..., None]
    got = moving_average(*tensors, make_layout(ids, torch.double)) * real
    want = recurrent_average(*tensors, ids) * real
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    grad = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad(got, tensors, grad),
        torch.autograd.grad(want, tensors, grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_short_rows(length):
    tensors = inputs(length, 2)
    torch.testing.assert_close(moving_average(*tensors, None), recurrent_average(*tensors, None))


@pytest.mark.parametrize("packing", [name for name, sizes in PACKINGS.items() if sizes])
def test_other_documents_change_not_a_bit(packing):
    """In fp32, with numbers so large that taking them away again would leave a rest."""
    length = 5 * BLOCK
    ids = segments(PACKINGS[packing], length)[None]
    torch.manual_seed(0)
    x, decay, weight = torch.randn(1, length, 3), -torch.rand(2, 3, 4), torch.randn(2, 3, 4)
    layout = make_layout(ids, torch.float32)
    before = moving_average(x, decay, weight, layout)
    for number in range(int(ids.max()) + 1):  # padding too
        here = ids[0] == number
        if not bool(here.any()):
            continue
        changed = torch.where(here[:, None], 1e6 * torch.randn_like(x), x)
        after = moving_average(changed, decay, weight, layout)
        others = ~here & (ids[0] != 0)
        assert torch.equal(after[:, others], before[:, others])


def test_gradients_against_finite_differences():
    tensors = inputs(BLOCK + 5, 2, rows=1)
    layout = make_layout(segments([10, 30], BLOCK + 5)[None], torch.double)
    assert torch.autograd.gradcheck(lambda *t: moving_average(*t, layout), tensors, fast_mode=True)


def test_features_in_groups_are_features_together(monkeypatch):
    tensors = inputs(3 * BLOCK, 2)
    whole = moving_average(*tensors, None)
    whole_grads = torch.autograd.grad(whole.square().sum(), tensors)
    monkeypatch.setattr(module, "CPU_GROUP", 1)
    assert len(feature_groups(tensors[0])) == 3
    parts = moving_average(*tensors, None)
    torch.testing.assert_close(parts, whole)
    for one, other in zip(
        torch.autograd.grad(parts.square().sum(), tensors), whole_grads, strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 300])
def test_states_are_handed_on_as_one_by_one(count):
    torch.manual_seed(0)
    own, decay = torch.randn(count, 2, 3, dtype=torch.double), -torch.rand(3, dtype=torch.double)
    passes = (torch.rand(count, 2) < 0.9).double()
    for gates in (None, passes):
        state, want = torch.zeros(2, 3, dtype=torch.double), []
        for step in range(count):
            kept = 1 if gates is None else gates[step][:, None]
            state = own[step] + state * decay.exp() * kept
            want.append(state)
        torch.testing.assert_close(hand_on(own, decay, gates), torch.stack(want))


def test_the_state_after_a_text_goes_on():
    x, decay, _ = (tensor.detach() for tensor in inputs(BLOCK + 9, 1))
    whole = state_after(x, decay[0], None)
    first = state_after(x[:, :70], decay[0], None)
    torch.testing.assert_close(state_after(x[:, 70:], decay[0], first), whole)
    state = torch.zeros_like(whole)
    for t in range(x.shape[1]):
        state = state * decay[0].exp() + x[:, t, :, None]
    torch.testing.assert_close(state, whole)


@pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
def test_nothing_is_longer_than_the_row(documents):
    """No kernel or state of the whole row: N averages of each position never exist."""
    largest = []
    for length in (16 * BLOCK, 64 * BLOCK):
        x, decay, weight = torch.randn(1, length, 8), -torch.rand(2, 8, 16), torch.randn(2, 8, 16)
        ids = (torch.arange(length) // 100 + 1)[None] if documents else None
        tensors = [tensor.requires_grad_() for tensor in (x, decay, weight)]
        with LargestTensor() as watch:
            y = moving_average(*tensors, make_layout(ids, torch.float32))
            torch.autograd.grad(y.sum(), tensors)
        largest.append(watch.largest / length)
    assert largest[0] >= largest[1] <= 2 * 8  # with a block more for each document


def test_many_rows_of_decays_near_none_and_all():
    """What is kept of a state may be next to nothing, or next to all of it."""
    x = torch.randn(1, 4 * BLOCK, 2, dtype=torch.double)
    decay = torch.tensor([[[-1e-9, -16.0]] * 2], dtype=torch.double)
    weight = torch.ones_like(decay)
    got = moving_average(x.float(), decay.float(), weight.float(), None)
    want = recurrent_average(x, decay, weight, None)
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
