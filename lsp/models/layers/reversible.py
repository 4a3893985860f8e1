"""A stack of residual branches that is differentiated without keeping what is inside it.

Two streams run through the stack (RevNet, 1707.04585; Reformer, 2001.04451, section 3): branch k
reads one and adds to the other, in turns,

    s0 += f0(s1),  s1 += f1(s0),  s0 += f2(s1),  ...

so the inputs of a branch can be computed back from its outputs by subtracting in reverse order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lsp.models.layers.tiling import Autocast, ParameterGradients


@dataclass(frozen=True)
class Piece:
    """A part of a branch that is evaluated by itself.

    Attributes:
        span: Positions it reads and adds to.
        arguments: Keyword arguments for the branch. Pieces of the same span add up.
    """

    span: slice = field(default_factory=lambda: slice(None))
    arguments: dict[str, Any] = field(default_factory=dict)


class Branch(nn.Module, ABC):
    """f in s0 += f(s1), evaluated in pieces so that its intermediates stay small.

    `forward(x_BKD, memo, **piece.arguments)` must give the same result every time it is called
    with the same input and memo: random numbers come from seeds in the memo, and decisions which a
    rounding error could turn (the buckets of LSH attention) are kept in the memo by the first
    call and found there by the next.
    """

    @abstractmethod
    def pieces(self, x_BLD: torch.Tensor) -> list[Piece]:
        """How to evaluate the branch for an input of this shape; at least one piece."""


@dataclass
class Drift:
    """Compares a few positions of the stack's input with what is computed back in the backward.

    Attributes:
        error: Largest difference over largest magnitude of the last backward pass (a scalar
            tensor on the streams' device), or None before the first.
    """

    positions: int = 256
    error: torch.Tensor | None = None

    def sample(self, x_BLD: torch.Tensor) -> torch.Tensor:
        step = max(1, x_BLD.shape[1] // self.positions)
        return x_BLD[:, ::step].clone()

    def compare(self, before_BLD: torch.Tensor, streams: Sequence[torch.Tensor]) -> None:
        scale = before_BLD.abs().max().clamp_min(torch.finfo(before_BLD.dtype).tiny)
        differences = [(self.sample(s) - before_BLD).abs().max() for s in streams]
        self.error = torch.stack(differences).max().float() / scale.float()


def run_stack(
    x_BLD: torch.Tensor,
    branches: Sequence[Branch],
    memos: Sequence[Any],
    *,
    residual: str = "reversible",
    drift: Drift | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs both streams, which begin as `x_BLD`, through the branches.

    The three values of `residual` compute the same, and differ in what is kept for the backward
    pass: `stored` keeps everything (plain autograd), `recomputed` the input of each branch,
    `reversible` the two final streams. The last two take over the storage of the results in the
    backward pass: read the results before it, differentiate once, and do not write to them.

    Args:
        x_BLD: (B, L, D) start of both streams.
        branches: At least two. Each is called through `__call__`, in the forward and again in the
            backward pass, so hooks that gather sharded parameters run; every parameter's gradient
            arrives once.
        memos: One per branch, handed to every call of it.
        residual: `reversible`, `recomputed` or `stored`.
        drift: Where given and `reversible`, measures how exactly the input is computed back.

    Returns:
        Streams 0 and 1: (B, L, D) each.
    """
    assert len(branches) == len(memos) >= 2
    differentiate = torch.is_grad_enabled() and (
        x_BLD.requires_grad or any(p.requires_grad for b in branches for p in b.parameters())
    )
    if differentiate and residual == "stored":
        return _stored(x_BLD, branches, memos)
    # Backward only visits a node that has an input which requires a gradient.
    anchor = torch.empty(0, device=x_BLD.device, requires_grad=differentiate)
    return _Stack.apply(
        anchor, x_BLD, branches, memos, differentiate, residual == "reversible", drift
    )


def _stored(
    x_BLD: torch.Tensor, branches: Sequence[Branch], memos: Sequence[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    streams = [x_BLD, x_BLD]
    for k, (branch, memo) in enumerate(zip(branches, memos, strict=True)):
        read, write = streams[1 - k % 2], streams[k % 2]
        pieces = branch.pieces(read)
        if all(piece.span == slice(None) for piece in pieces):
            for piece in pieces:
                write = write + branch(read, memo, **piece.arguments)
        else:
            added = [branch(read[:, p.span], memo, **p.arguments) for p in pieces]
            write = write + torch.cat(added, dim=1)
        streams[k % 2] = write
    return streams[0], streams[1]


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        x_BLD: torch.Tensor,
        branches: Sequence[Branch],
        memos: Sequence[Any],
        differentiate: bool,
        reversible: bool,
        drift: Drift | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        streams, inputs = [x_BLD, x_BLD], []
        autocast = Autocast(x_BLD.device.type)
        with autocast():
            for k, (branch, memo) in enumerate(zip(branches, memos, strict=True)):
                read, write = streams[1 - k % 2], streams[k % 2]
                if differentiate and not reversible:
                    inputs.append(read)
                # Added to in place, unless it is the caller's or was kept as a branch's input.
                if k < 2 or inputs:
                    write = streams[k % 2] = write.clone()
                for piece in branch.pieces(read):
                    write[:, piece.span].add_(branch(read[:, piece.span], memo, **piece.arguments))
        if differentiate:
            ctx.branches, ctx.memos, ctx.autocast = branches, memos, autocast
            ctx.reversible, ctx.spent = reversible, False
            ctx.drift = drift if reversible else None
            ctx.sample = None if ctx.drift is None else ctx.drift.sample(x_BLD)
            ctx.save_for_backward(*(streams if reversible else inputs))
        return streams[0], streams[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError(
                "a reversible stack can be differentiated once per forward pass: "
                "its outputs were used up by the first backward"
            )
        ctx.spent = True
        saved = [tensor.detach() for tensor in ctx.saved_tensors]
        grad_streams = _owned(grads)
        streams = saved if ctx.reversible else [saved[-1], saved[-1]]
        for k in reversed(range(len(ctx.branches))):
            read, write = (streams[1 - k % 2] if ctx.reversible else saved.pop()), streams[k % 2]
            _backward_branch(
                ctx.branches[k],
                ctx.memos[k],
                read,
                write if ctx.reversible else None,
                grad_streams[1 - k % 2],
                grad_streams[k % 2],
                ctx.autocast,
            )
        if ctx.drift is not None:
            ctx.drift.compare(ctx.sample, streams)
        grad_BLD = grad_streams[0].add_(grad_streams[1]) if ctx.needs_input_grad[1] else None
        ctx.branches = ctx.memos = ctx.sample = None
        return None, grad_BLD, None, None, None, None, None


def _backward_branch(
    branch: Branch,
    memo: Any,
    read: torch.Tensor,
    write: torch.Tensor | None,
    grad_read: torch.Tensor,
    grad_write: torch.Tensor,
    autocast: Autocast,
) -> None:
    """Differentiates one branch again from its input, piece by piece, all in place.

    Args:
        branch: The branch.
        memo: What it was given in the forward pass.
        read: (B, L, D) its input.
        write: (B, L, D) the stream that it was added to, from which it is taken off again; None
            where the input of the branch before is at hand anyway.
        grad_read: (B, L, D) gradient of its input, added to.
        grad_write: (B, L, D) gradient of its output.
        autocast: The forward pass's.
    """
    pieces = branch.pieces(read)
    gradients = ParameterGradients(branch.parameters())
    for index, piece in enumerate(pieces):
        leaf = read[:, piece.span].detach().requires_grad_()
        with torch.enable_grad(), autocast():
            out = branch(leaf, memo, **piece.arguments)
        if write is not None:
            write[:, piece.span].sub_(out.detach())
        grad_out = grad_write[:, piece.span].to(out.dtype)
        # The backward pass needs the graph behind the output, not its L x D numbers.
        edge = torch.autograd.graph.get_gradient_edge(out)
        del out
        if index < len(pieces) - 1:
            (grad,) = gradients.collect([edge], [grad_out], [leaf])
        else:
            gradients.release([edge], [grad_out])
            grad = leaf.grad
        if grad is not None:
            grad_read[:, piece.span].add_(grad)


def _owned(grads: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients of both streams, safe to be added to in place.

    Autograd may pass an expanded tensor, a view of a wider one, or the same tensor twice.
    """
    first, second = (g if g.is_contiguous() and g._base is None else g.clone() for g in grads)
    if first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr():
        second = second.clone()
    return [first, second]
