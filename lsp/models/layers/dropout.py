"""Dropout whose mask is a function of an explicit seed.

What is computed twice (reversed, recomputed, tiled) then drops the same numbers both times, and
the global generators are never touched, so nothing has to be saved, replayed or restored.
"""

from __future__ import annotations

from typing import Any

import torch

_MASK_64 = 2**64 - 1


def derive_seed(*key: int) -> int:
    """A seed that is a pure function of `key`, for example (seed, layer): 0 <= seed < 2**63.

    Each number is absorbed with the finaliser of SplitMix64 (Steele et al., 2014), so that
    neighbouring keys give unrelated seeds.
    """
    state = 0
    for number in key:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state >> 1


def seeded_dropout(x: torch.Tensor, probability: float, seed: int | None) -> torch.Tensor:
    """Drops elements of `x`, of any shape, with a probability; nothing is kept for the backward.

    Args:
        x: Any tensor.
        probability: Of dropping an element.
        seed: Decides which ones; None, as in evaluation, drops nothing.
    """
    if probability == 0.0 or seed is None:
        return x
    return _SeededDropout.apply(x, probability, seed)


def _dropped(x: torch.Tensor, probability: float, seed: int) -> torch.Tensor:
    generator = torch.Generator(device=x.device).manual_seed(seed)
    keep = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    keep.bernoulli_(1.0 - probability, generator=generator)
    return keep.mul_(x).mul_(1.0 / (1.0 - probability))


class _SeededDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, probability: float, seed: int) -> torch.Tensor:
        ctx.probability, ctx.seed = probability, seed
        return _dropped(x, probability, seed)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _dropped(grad, ctx.probability, ctx.seed), None, None
