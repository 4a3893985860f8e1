"""A block that mixes positions more than once, differentiated from its input alone.

As `sequential.py`, for layers whose parts are not blocks of their own on the stream: steps follow
each other, each from what some before it gave. Only the block's input is kept; in the backward
pass the steps are evaluated again, and what each gave exists once for the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lsp.models.layers.tiling import Autocast, Joined, ParameterGradients, graph_edge


@dataclass(frozen=True)
class Step:
    """One step of a block.

    Attributes:
        name: Of the method, called with the tensors it reads, the memo and the run of positions.
        reads: Names of what it reads: `x` is the block's input.
        gives: Names of the tensors that it returns, (B, K, ...) each.
        mixes: Whether it sees all positions; otherwise it treats each by itself, and is evaluated
            tile by tile.
    """

    name: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    mixes: bool = False


class StagedBlock(nn.Module):
    """Steps from a stream to the same.

    The same input and memo must always give the same result: random numbers come from seeds in the
    memo. No parameter may be used in two steps.

    Attributes:
        steps: In their order; the last does not mix, and gives the stream alone.
    """

    steps: ClassVar[tuple[Step, ...]]

    def forward(self, step: str, *arguments: Any) -> Any:
        """Runs one step; through `__call__`, where hooks gather sharded parameters."""
        return getattr(self, step)(*arguments)

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        """Runs of positions that cover the sequence."""
        raise NotImplementedError


def run_staged(
    x_BLD: torch.Tensor, block: StagedBlock, memo: Any, *, recompute: bool = True
) -> torch.Tensor:
    """Runs a stream through a block.

    Args:
        x_BLD: (B, L, D).
        block: Called through `__call__`, in the forward and again in the backward pass; every
            parameter's gradient arrives once.
        memo: Handed to every step.
        recompute: Whether only the input is kept for the backward pass; otherwise everything is
            (plain autograd).

    Returns:
        (B, L, D).
    """
    differentiate = torch.is_grad_enabled() and (
        x_BLD.requires_grad or any(p.requires_grad for p in block.parameters())
    )
    if differentiate and not recompute:
        return _stored(x_BLD, block, memo)
    # Backward only visits a node that has an input which requires a gradient.
    anchor = torch.empty(0, device=x_BLD.device, requires_grad=differentiate)
    out_BLD: torch.Tensor = _Recomputed.apply(anchor, x_BLD, block, memo)
    return out_BLD


def _pieces(step: Step, tiles: list[slice]) -> list[slice]:
    return [slice(0, tiles[-1].stop)] if step.mixes else tiles


def _stored(x_BLD: torch.Tensor, block: StagedBlock, memo: Any) -> torch.Tensor:
    tiles, values = block.tiles(x_BLD), {"x": x_BLD}
    for step in block.steps:
        parts = [
            block(step.name, *(values[name][:, piece] for name in step.reads), memo, piece)
            for piece in _pieces(step, tiles)
        ]
        joined = [torch.cat(part, dim=1) for part in zip(*parts, strict=True)]
        values |= dict(zip(step.gives, joined, strict=True))
    return values[block.steps[-1].gives[0]]


def _forget(values: dict[str, torch.Tensor], later: Iterable[Step]) -> None:
    """Drops what no later step reads."""
    needed = {name for step in later for name in step.reads}
    for name in set(values) - needed:
        del values[name]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, x_BLD: torch.Tensor, block: StagedBlock, memo: Any
    ) -> torch.Tensor:
        ctx.block, ctx.memo, ctx.autocast = block, memo, Autocast(x_BLD.device.type)
        ctx.save_for_backward(x_BLD)
        with ctx.autocast():
            tiles, values = block.tiles(x_BLD), {"x": x_BLD}
            for number, step in enumerate(block.steps):
                joined = Joined(x_BLD.shape[1])
                for piece in _pieces(step, tiles):
                    read = [values[name][:, piece] for name in step.reads]
                    joined.put(piece, block(step.name, *read, memo, piece))
                later = block.steps[number + 1 :]
                values |= dict(zip(step.gives, joined.parts, strict=True))
                del joined
                if later:
                    _forget(values, later)
        # Between blocks the stream keeps its type, whatever autocast computes in.
        return values[block.steps[-1].gives[0]].to(x_BLD.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BLD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x_BLD,) = ctx.saved_tensors
        grad = _Differentiation(ctx.block, ctx.memo, x_BLD, grad_BLD, ctx.autocast).run()
        return None, grad if ctx.needs_input_grad[1] else None, None, None


@dataclass
class _Piece:
    """A step's evaluation of some positions, to be differentiated."""

    step: Step
    span: slice
    leaves: list[torch.Tensor]
    outputs: list[Any]


class _Differentiation:
    """One block, evaluated again from its input and differentiated, step by step."""

    def __init__(
        self,
        block: StagedBlock,
        memo: Any,
        x_BLD: torch.Tensor,
        grad_BLD: torch.Tensor,
        autocast: Autocast,
    ) -> None:
        self.block, self.memo, self.autocast = block, memo, autocast
        self.x_BLD, self.grad_out = x_BLD, grad_BLD
        self.tiles = block.tiles(x_BLD)
        self.gradients = {step: ParameterGradients(block.parameters()) for step in block.steps}
        self.grads: dict[str, torch.Tensor] = {}
        self.own: set[str] = set()  # of the gradients, those that nobody else holds

    def run(self) -> torch.Tensor:
        """The gradient of the block's input; those of its parameters land in their `.grad`."""
        *steps, last = self.block.steps
        values = {"x": self.x_BLD}
        pieces: list[_Piece] = []
        for number, step in enumerate(steps):
            joined = Joined(self.x_BLD.shape[1])
            for span in _pieces(step, self.tiles):
                piece, outs = self._evaluate(step, values, span)
                joined.put(span, outs)
                piece.outputs = [graph_edge(out) for out in outs]
                del outs
                pieces.append(piece)
            values |= dict(zip(step.gives, joined.parts, strict=True))
            del joined
            _forget(values, self.block.steps[number + 1 :])
        for span in self.tiles:
            piece, outs = self._evaluate(last, values, span)
            piece.outputs = list(outs)
            wanted = [self.grad_out[:, span].to(outs[0].dtype)]
            del outs
            self._differentiate(piece, wanted, final=span is self.tiles[-1])
            del piece
        values.clear()
        while pieces:
            piece = pieces.pop()
            wanted = [self.grads[name][:, piece.span] for name in piece.step.gives]
            first = piece.span.start == 0
            self._differentiate(piece, wanted, final=first)
            if first:
                for name in piece.step.gives:
                    self.grads.pop(name, None)
        return self.grads["x"]

    def _evaluate(
        self, step: Step, values: dict[str, torch.Tensor], span: slice
    ) -> tuple[_Piece, Sequence[torch.Tensor]]:
        leaves = [values[name][:, span].detach().requires_grad_() for name in step.reads]
        with torch.enable_grad(), self.autocast():
            outs = self.block(step.name, *leaves, self.memo, span)
        return _Piece(step, span, leaves, []), outs

    def _differentiate(self, piece: _Piece, wanted: list[torch.Tensor], *, final: bool) -> None:
        gradients = self.gradients[piece.step]
        if final:
            gradients.release(piece.outputs, wanted)
            grads = [leaf.grad for leaf in piece.leaves]
        else:
            grads = gradients.collect(piece.outputs, wanted, piece.leaves)
        length = self.x_BLD.shape[1]
        for name, leaf, grad in zip(piece.step.reads, piece.leaves, grads, strict=True):
            assert grad is not None, f"{piece.step.name} reads {name} for nothing"
            if leaf.shape[1] == length:
                # Not in place: autograd may give one tensor for several leaves.
                self.grads[name] = self.grads[name] + grad if name in self.grads else grad
                continue
            if name not in self.own:
                total = leaf.new_zeros((len(leaf), length, *leaf.shape[2:]))
                self.grads[name] = total + self.grads[name] if name in self.grads else total
                self.own.add(name)
            self.grads[name][:, piece.span] += grad
