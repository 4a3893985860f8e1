"""Tiled computation equals the whole, forward and backward, and never holds more than a tile."""

import pytest
import torch
from torch import nn

from lsp.models.layers.dropout import derive_seed, seeded_dropout
from lsp.models.layers.tiling import tile_spans, tiled
from tests.models.largest_tensor import LargestTensor


class Mlp(nn.Module):
    """A feed-forward layer that is much wider than its input, with dropout."""

    def __init__(self, dim: int = 8, wide: int = 64, dropout: float = 0.3) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, wide), nn.Linear(wide, dim)
        self.dropout = dropout

    def forward(self, x: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        return self.down(seeded_dropout(self.up(x).relu(), self.dropout, seed))


@pytest.mark.parametrize("length", [1, 2, 7, 24])
@pytest.mark.parametrize("tiles", [1, 3, 9, 40])
def test_spans_cover_everything_once(length: int, tiles: int):
    spans = tile_spans(length, tiles)
    assert [i for s in spans for i in range(s.start, s.stop)] == list(range(length))
    assert len(spans) == min(tiles, length)


def _gradients(module: nn.Module, x: torch.Tensor, tiles: int, seed: int | None, twin: bool):
    module.zero_grad()
    x = x.clone().requires_grad_()
    if twin:  # plain autograd over the same tiles
        outs = [
            module(x[:, s], seed=None if seed is None else derive_seed(seed, i))
            for i, s in enumerate(tile_spans(x.shape[1], tiles))
        ]
        out = torch.cat(outs, dim=1)
    else:
        out = tiled(module, x, tiles, seed=seed)
    out.sin().sum().backward()
    return out.detach(), [x.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("seed", [None, 5], ids=["plain", "dropout"])
@pytest.mark.parametrize("tiles", [1, 2, 9, 24, 30])
def test_tiled_equals_whole(tiles: int, seed: int | None):
    torch.manual_seed(0)
    module, x = Mlp(), torch.randn(2, 24, 8)
    before = torch.get_rng_state()
    out, grads = _gradients(module, x, tiles, seed, twin=False)
    assert torch.equal(before, torch.get_rng_state())
    # Without dropout the twin is the whole at once.
    want_out, want_grads = _gradients(module, x, 1 if seed is None else tiles, seed, twin=True)
    torch.testing.assert_close(out, want_out)
    for grad, want in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-6)


def test_every_parameter_gradient_arrives_once_and_modules_are_called():
    module, x = Mlp(), torch.randn(2, 24, 8)
    fired: dict[str, int] = {}
    calls = []
    for name, parameter in module.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _, name=name: fired.update({name: fired.get(name, 0) + 1})
        )
    module.register_forward_hook(lambda *_: calls.append(1))
    tiled(module, x, 5).sum().backward()
    assert fired == {name: 1 for name, _ in module.named_parameters()}
    assert len(calls) == 10  # each tile in the forward and again in the backward


def test_a_parameter_that_the_last_tile_does_not_use_still_gets_its_gradient():
    weight = nn.Parameter(torch.tensor(2.0))
    other = nn.Parameter(torch.tensor(3.0))
    fired = []
    weight.register_post_accumulate_grad_hook(lambda _: fired.append(1))

    def fn(x: torch.Tensor) -> torch.Tensor:
        return x * (weight if x.flatten()[0] < 0 else other)

    x = torch.tensor([-1.0, -2.0, 3.0, 4.0]).reshape(1, 4, 1)
    tiled(fn, x, 2, parameters=[weight, other]).sum().backward()
    assert weight.grad == -3
    assert other.grad == 7
    assert len(fired) == 1


def test_gradients_of_a_frozen_input_and_of_frozen_parameters():
    module, x = Mlp(dropout=0), torch.randn(1, 12, 8)
    module.up.weight.requires_grad_(False)
    tiled(module, x, 3).sum().backward()
    assert module.up.weight.grad is None
    want = torch.autograd.grad(module(x).sum(), module.down.weight)[0]
    torch.testing.assert_close(module.down.weight.grad, want)


def test_no_graph_under_no_grad():
    with torch.no_grad():
        assert not tiled(Mlp(), torch.randn(1, 12, 8), 3).requires_grad


def test_nothing_of_the_wide_size_exists_for_more_than_a_tile():
    module, x = Mlp(dropout=0.1), torch.randn(1, 120, 8, requires_grad=True)
    with LargestTensor() as recorded:
        tiled(module, x, 10, seed=0).sum().backward()
    assert recorded.largest == max(12 * 64, 120 * 8)


def test_gradients_of_many_bf16_tiles_are_added_in_fp32():
    torch.manual_seed(0)
    module = nn.Linear(4, 4).bfloat16()
    x = torch.rand(1, 512, 4).bfloat16()
    tiled(module, x, 512).sum().backward()
    want = module.weight.grad.float() * 0 + x.float().sum((0, 1))
    torch.testing.assert_close(module.weight.grad.float(), want, rtol=1e-2, atol=0)


def test_the_backward_runs_under_the_autocast_of_the_forward():
    torch.manual_seed(0)
    module, x = Mlp(dropout=0), torch.randn(1, 12, 8, requires_grad=True)
    seen = []
    module.up.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = tiled(module, x, 3)
    out.float().sum().backward()
    assert seen == [torch.bfloat16] * 6
    assert module.up.weight.grad.abs().sum() > 0
