"""Reversible = recomputed = stored, and what the stack promises around its gradients."""

import pytest
import torch
from torch import nn

from lsp.models.layers.dropout import derive_seed, seeded_dropout
from lsp.models.layers.reversible import Branch, Drift, run_stack
from lsp.models.layers.tiling import tile_spans

torch.set_num_threads(1)

DIM, LENGTH = 6, 20


class Wide(Branch):
    """A feed-forward branch in tiles of the sequence, with dropout seeded by the memo."""

    mixes = False

    def __init__(self, tiles: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
        self.parts, self.calls = tiles, 0

    def tiles(self, x: torch.Tensor) -> list[slice]:
        return tile_spans(x.shape[1], self.parts)

    def after(self, x: torch.Tensor, memo: int, group: None, tile: slice) -> torch.Tensor:
        self.calls += 1
        return self.down(seeded_dropout(self.up(x).tanh(), 0.2, derive_seed(memo, tile.start)))


class Mixing(Branch):
    """A branch over all positions in groups that add up, as heads do."""

    def __init__(self, tiles: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.a, self.b = nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, 2 * DIM)
        self.out = nn.Linear(2 * DIM, DIM)
        self.parts = tiles

    def groups(self, x: torch.Tensor) -> list[slice]:
        return [slice(0, DIM), slice(DIM, 2 * DIM)]

    def tiles(self, x: torch.Tensor) -> list[slice]:
        return tile_spans(x.shape[1], self.parts)

    def before(
        self, x: torch.Tensor, memo: int, group: slice, tile: slice
    ) -> tuple[torch.Tensor, ...]:
        normed = self.norm(x)
        return self.a(normed)[..., group], self.b(normed)[..., group]

    def across(self, mixed, memo: int, group: slice) -> torch.Tensor:
        first, second = mixed
        return seeded_dropout((first * second.sigmoid()).cumsum(1) / LENGTH, 0.2, memo)

    def after(self, x: torch.Tensor, memo: int, group: slice, tile: slice) -> torch.Tensor:
        wide = x.new_zeros(*x.shape[:2], 2 * DIM)
        wide[..., group] = x
        return seeded_dropout(self.out(wide), 0.2, derive_seed(memo, tile.start))


def _stack(layers: int = 12) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(b for i in range(layers) for b in (Mixing(1 + i % 3), Wide(1 + i % 4)))


def _run(branches, residual: str, x: torch.Tensor, **options):
    branches.zero_grad()
    x = x.clone().requires_grad_()
    first, second = run_stack(x, branches, range(len(branches)), residual=residual, **options)
    loss = (first * 2 + second.sin() * first).sum()
    values = first.detach().clone(), second.detach().clone()
    loss.backward()
    return values, [x.grad, *(p.grad.clone() for p in branches.parameters())]


@pytest.mark.parametrize("residual", ["reversible", "recomputed"])
def test_gradients_equal_plain_autograd_with_dropout(residual: str):
    branches, x = _stack(), torch.randn(2, LENGTH, DIM)
    before = torch.get_rng_state()
    values, grads = _run(branches, residual, x)
    assert torch.equal(before, torch.get_rng_state())
    want_values, want_grads = _run(branches, "stored", x)
    for got, want in zip(values, want_values, strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(grads, want_grads, strict=True):
        assert (got - want).norm() / want.norm() < 1e-5


@pytest.mark.parametrize("residual", ["reversible", "recomputed", "stored"])
def test_every_parameter_gradient_arrives_once_per_backward(residual: str):
    branches = _stack(3)
    fired = {name: 0 for name, _ in branches.named_parameters()}
    for name, parameter in branches.named_parameters():

        def count(_, name=name):
            fired[name] += 1

        parameter.register_post_accumulate_grad_hook(count)
    for _ in range(2):
        first, second = run_stack(
            torch.randn(1, LENGTH, DIM), branches, range(6), residual=residual
        )
        (first + second).sum().backward()
    assert set(fired.values()) == {2}


@pytest.mark.parametrize("residual", ["reversible", "recomputed"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: (a + b).sum(),
        lambda a, b: (a + b).sin().sum(),
        lambda a, b: torch.cat([a, b], -1).sin().sum(),
        lambda a, b: b.sin().sum(),
        lambda a, b: (a.transpose(0, 1) ** 2).sum(),
    ],
    ids=["expanded", "shared", "views", "one_stream", "transposed"],
)
def test_gradients_that_autograd_shares_are_not_overwritten(residual: str, loss):
    branches, x = _stack(2), torch.randn(2, LENGTH, DIM)
    grads = []
    for mode in (residual, "stored"):
        leaf = x.clone().requires_grad_()
        loss(*run_stack(leaf, branches, range(4), residual=mode)).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_the_backward_runs_under_the_autocast_of_the_forward():
    branches, x = _stack(2), torch.randn(1, LENGTH, DIM)
    dtypes = []
    branches[1].up.register_forward_hook(lambda m, i, out: dtypes.append(out.dtype))
    results = []
    for mode in ("reversible", "recomputed", "stored"):
        branches.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            first, second = run_stack(x, branches, range(4), residual=mode)
        (first.float() + second.float()).sum().backward()
        results.append([p.grad.clone() for p in branches.parameters()])
    assert set(dtypes) == {torch.bfloat16}
    for grads in results[:2]:
        for got, want in zip(grads, results[2], strict=True):
            assert want.abs().sum() > 0
            assert (got - want).norm() / want.norm() < 1e-2


def test_a_backward_under_the_callers_autocast_finds_no_stale_weights():
    branches, x = _stack(2), torch.randn(1, LENGTH, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = run_stack(x, branches, range(4))
        (first.float() + second.float()).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in branches.parameters())


def test_drift_is_measured_over_the_whole_stack():
    branches, drift = _stack(), Drift(positions=8)
    _run(branches, "reversible", torch.randn(2, LENGTH, DIM), drift=drift)
    assert 0 < drift.error < 1e-5


def test_drift_sees_a_branch_that_is_not_repeatable():
    branches, drift = _stack(2), Drift()
    branches[3].register_forward_hook(lambda m, i, out: out + 0.5 * m.calls)
    _run(branches, "reversible", torch.randn(2, LENGTH, DIM), drift=drift)
    assert drift.error > 0.1


def test_without_gradients_each_branch_runs_once_and_nothing_is_kept():
    branches, x = _stack(2), torch.randn(1, LENGTH, DIM)
    with torch.no_grad():
        first, _ = run_stack(x, branches, range(4))
    assert not first.requires_grad
    assert branches[1].calls == branches[1].parts


def test_the_callers_input_is_left_alone():
    branches, x = _stack(2), torch.randn(1, LENGTH, DIM)
    copy = x.clone()
    _run(branches, "reversible", x)
    assert torch.equal(x, copy)


def test_a_second_backward_is_refused():
    branches = _stack(2)
    first, _ = run_stack(torch.randn(1, LENGTH, DIM), branches, range(4))
    first.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        first.sum().backward()
