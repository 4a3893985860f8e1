"""A weight that is used at both ends of a model, with one gradient.

Hooks on a parameter's gradient (DDP's and ZeRO's reductions) expect to run once per micro-batch.
A head that is differentiated tile by tile, before everything else, would make them run when only
its share is there: the share waits here until the embedding's arrives, which is last.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class WaitingGradient:
    """What one end of a model adds to the gradient of a weight, until the other end has its own.

    Attributes:
        anchor: What to differentiate by, in place of the weight, at the end that comes first; it
            gets no gradient.
    """

    def __init__(self) -> None:
        self.anchor = torch.empty(0, requires_grad=True)
        self._total: torch.Tensor | None = None
        self._hook: Any = None

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight, to be used at the end that is differentiated first."""
        # Not linked to the weight, whose hooks would run even for a gradient that is not there.
        return _Waiting.apply(self.anchor, weight.detach(), self)

    def add(self, grad: torch.Tensor) -> None:
        """Adds a share; in low precision many small ones would be lost."""
        wide = torch.promote_types(grad.dtype, torch.float32)
        self._total = grad.to(wide) if self._total is None else self._total.add_(grad)

    def scale(self, factor: torch.Tensor) -> None:
        """Multiplies what is waiting by a scalar."""
        if self._total is not None:
            self._total.mul_(factor)

    def join(self, weight: torch.Tensor) -> None:
        """Adds what is waiting to the next gradient of `weight`, which another use of it gives."""
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return
        # What a pass has left that was never differentiated is not this one's.
        self._forget()

        def add(grad: torch.Tensor) -> torch.Tensor:
            total = self._total
            self._forget()
            return grad if total is None else total.add_(grad).to(grad.dtype)

        self._hook = weight.register_hook(add)

    def _forget(self) -> None:
        self._total = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


class WaitingGradients:
    """Several of them, of different weights."""

    def __init__(self, members: Iterable[WaitingGradient]) -> None:
        self._members = list(members)

    def scale(self, factor: torch.Tensor) -> None:
        """Multiplies what is waiting by a scalar."""
        for member in self._members:
            member.scale(factor)


class _Waiting(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, weight: torch.Tensor, waiting: WaitingGradient
    ) -> torch.Tensor:
        ctx.waiting = waiting
        return weight.view_as(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, None]:
        ctx.waiting.add(grad)
        return None, None, None


class TiedEmbedding(nn.Embedding):
    """An embedding whose weight the head reads with, if it is given `waiting`."""

    waiting: WaitingGradient | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.waiting is not None:
            self.waiting.join(self.weight)
        return super().forward(ids)


def give_waiting(
    x: torch.Tensor, weights: list[tuple[nn.Parameter, WaitingGradient]]
) -> torch.Tensor:
    """`x` itself; once its gradient is there, the weights get what has been waiting for them.

    For weights that are used many times, but never in plain autograd: `x` is made before all of
    their uses, so its gradient comes after theirs.
    """
    if not (torch.is_grad_enabled() and any(weight.requires_grad for weight, _ in weights)):
        return x
    for weight, waiting in weights:
        waiting.join(weight)
    out: torch.Tensor = _Giving.apply(x, *(weight for weight, _ in weights))
    return out


class _Giving(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        # Where weights are sharded, they are not whole any more when the gradient comes.
        ctx.shapes = [(weight.shape, weight.dtype) for weight in weights]
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        zeros = (torch.zeros(s, dtype=dtype, device=grad.device) for s, dtype in ctx.shapes)
        return grad, *zeros
