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
    """Drops elements of `x`, of any shape, with a probability.

    Args:
        x: Any tensor.
        probability: Of dropping an element, rounded to a multiple of 2**-16.
        seed: Decides which ones; None, as in evaluation, drops nothing.
    """
    dropped = round(probability * 2**16)
    if dropped == 0 or seed is None:
        return x
    return _SeededDropout.apply(x, dropped, seed)


class _SeededDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dropped: int, seed: int) -> torch.Tensor:
        # Sixteen random bits decide about an element, so a 64-bit draw serves four: the draws are
        # what dropout costs on a CPU.
        generator = torch.Generator(device=x.device).manual_seed(seed)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None, generator=generator)
        drop = (draws.view(torch.int16)[: x.numel()] < dropped - 2**15).view(x.shape)
        ctx.scale = 2**16 / (2**16 - dropped)
        ctx.save_for_backward(drop)
        return x.masked_fill(drop, 0.0).mul_(ctx.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (drop,) = ctx.saved_tensors
        return grad.masked_fill(drop, 0.0).mul_(ctx.scale), None, None
