"""Dropout with explicit seeds."""

import pytest
import torch

from lsp.models.layers.dropout import derive_seed, seeded_dropout


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_share_dropped_and_mean_kept(probability: float):
    x = torch.ones(1000, 501)
    out = seeded_dropout(x, probability, 3)
    assert (out == 0).float().mean() == pytest.approx(probability, abs=3e-3)
    assert out.mean() == pytest.approx(1, rel=0.02)
    assert out.unique().numel() == 2


def test_a_seed_drops_the_same_elements_and_another_one_others():
    x = torch.randn(7, 33)
    assert torch.equal(seeded_dropout(x, 0.3, 1), seeded_dropout(x, 0.3, 1))
    assert not torch.equal(seeded_dropout(x, 0.3, 1), seeded_dropout(x, 0.3, 2))


def test_the_gradient_passes_where_the_value_did():
    x = torch.randn(9, 9, requires_grad=True)
    out = seeded_dropout(x, 0.4, 5)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)
    torch.testing.assert_close(x.grad * x.detach(), out.detach())


@pytest.mark.parametrize(("probability", "seed"), [(0.0, 1), (0.5, None)], ids=["zero", "no_seed"])
def test_nothing_is_dropped(probability: float, seed: int | None):
    x = torch.randn(3)
    assert seeded_dropout(x, probability, seed) is x


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    seeded_dropout(torch.ones(10), 0.5, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_of_neighbouring_keys_are_unrelated():
    seeds = [derive_seed(a, b) for a in range(-3, 40) for b in range(-3, 40)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    ones = [sum((seed >> bit) & 1 for seed in seeds) / len(seeds) for bit in range(63)]
    assert all(0.4 < share < 0.6 for share in ones)
    assert derive_seed(1, 2) != derive_seed(2, 1)
