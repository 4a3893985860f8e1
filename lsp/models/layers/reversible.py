"""A stack of residual branches that is differentiated without keeping what is inside it.

Two streams run through the stack (RevNet, 1707.04585; Reformer, 2001.04451, section 3): branch k
reads one and adds to the other, in turns,

    s0 += f0(s1),  s1 += f1(s0),  s0 += f2(s1),  ...

so the inputs of a branch can be computed back from its outputs by subtracting in reverse order.
Branches are evaluated in parts, see `Branch`, so that besides the streams and their gradients
only a group of heads and a tile of the sequence exist at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lsp.models.layers.tiling import Autocast, Joined, ParameterGradients, graph_edge


class Branch(nn.Module, ABC):
    """f in s0 += f(s1), as three steps: f(x) = after(across(before(x))).

    `before` and `after` treat each position by itself, and are evaluated tile by tile. `across`
    mixes positions, and sees all of them, but for one group (of heads) at a time; what the groups
    give adds up. A branch that does not mix positions has only `after`.

    The same input and memo must always give the same result: random numbers come from seeds in the
    memo, and decisions which a rounding error could turn (the buckets of LSH attention) are kept
    in the memo by the first call and found there by the next. No parameter may be used both in
    `before` and in `after`.
    """

    mixes = True

    def forward(self, step: str, *arguments: Any) -> Any:
        """Runs one step; through `__call__`, where hooks gather sharded parameters."""
        return getattr(self, step)(*arguments)

    def groups(self, x_BLD: torch.Tensor) -> list[Any]:
        """What the steps are told apart by; at least one."""
        return [None]

    @abstractmethod
    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        """Runs of positions that cover the sequence."""

    def before(
        self, x_BKD: torch.Tensor, memo: Any, group: Any, tile: slice
    ) -> tuple[torch.Tensor, ...]:
        """From a tile of the input to what is mixed: (B, K, ...) each."""
        raise NotImplementedError

    def across(self, mixed: Sequence[torch.Tensor], memo: Any, group: Any) -> torch.Tensor:
        """Mixes positions: from (B, L, ...) each to (B, L, E). Learns nothing itself."""
        raise NotImplementedError

    @abstractmethod
    def after(self, x_BKE: torch.Tensor, memo: Any, group: Any, tile: slice) -> torch.Tensor:
        """From a tile of what was mixed (or of the input) to the share of the result."""


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
        read = streams[1 - k % 2]
        tiles = branch.tiles(read)
        for group in branch.groups(read):
            x = read
            if branch.mixes:
                parts = [branch("before", read[:, tile], memo, group, tile) for tile in tiles]
                mixed = [torch.cat(part, dim=1) for part in zip(*parts, strict=True)]
                x = branch("across", mixed, memo, group)
            added = [branch("after", x[:, tile], memo, group, tile) for tile in tiles]
            streams[k % 2] = streams[k % 2] + torch.cat(added, dim=1)
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
                add_branch(branch, memo, read, write)
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
        for k in reversed(range(len(ctx.branches))):
            _Differentiation(
                ctx.branches[k],
                ctx.memos[k],
                read=saved[1 - k % 2] if ctx.reversible else saved.pop(),
                write=saved[k % 2] if ctx.reversible else None,
                grad_read=grad_streams[1 - k % 2],
                grad_write=grad_streams[k % 2],
                autocast=ctx.autocast,
            ).run()
        if ctx.drift is not None:
            ctx.drift.compare(ctx.sample, saved)
        grad_BLD = grad_streams[0].add_(grad_streams[1]) if ctx.needs_input_grad[1] else None
        ctx.branches = ctx.memos = ctx.sample = None
        return None, grad_BLD, None, None, None, None, None


def add_branch(branch: Branch, memo: Any, read: torch.Tensor, write: torch.Tensor) -> None:
    """write += f(read), in place and without gradients."""
    tiles = branch.tiles(read)
    for group in branch.groups(read):
        x = read
        if branch.mixes:
            mixed = Joined(read.shape[1])
            for tile in tiles:
                mixed.put(tile, branch("before", read[:, tile], memo, group, tile))
            x = branch("across", mixed.parts, memo, group)
            del mixed
        for tile in tiles:
            write[:, tile].add_(branch("after", x[:, tile], memo, group, tile))


@dataclass
class _Differentiation:
    """One branch, evaluated again from its input and differentiated, part by part, in place.

    Attributes:
        branch: The branch.
        memo: What it was given in the forward pass.
        read: (B, L, D) its input.
        write: (B, L, D) the stream that it was added to, from which it is taken off again; None
            where the input of the branch before is at hand anyway.
        grad_read: (B, L, D) gradient of its input, added to.
        grad_write: (B, L, D) gradient of its output.
        autocast: The forward pass's.
    """

    branch: Branch
    memo: Any
    read: torch.Tensor
    write: torch.Tensor | None
    grad_read: torch.Tensor
    grad_write: torch.Tensor
    autocast: Autocast

    def run(self) -> None:
        groups = self.branch.groups(self.read)
        self._tiles = self.branch.tiles(self.read)
        self._before = ParameterGradients(self.branch.parameters())
        self._after = ParameterGradients(self.branch.parameters())
        for group in groups:
            self._last_group = group is groups[-1]
            if self.branch.mixes:
                self._mixing(group)
            else:
                for tile in self._tiles:
                    self.grad_read[:, tile].add_(self._run_after(self.read, group, tile))

    def _mixing(self, group: Any) -> None:
        """Forward through the three steps of a group, then back through them."""
        mixed = Joined(self.read.shape[1])
        edges: list[Any] = []
        leaves: list[Any] = []
        for tile in self._tiles:
            leaf = self._leaf(self.read, tile)
            with torch.enable_grad(), self.autocast():
                values = self.branch("before", leaf, self.memo, group, tile)
            mixed.put(tile, values)
            leaves.append(leaf)
            edges.append([graph_edge(value) for value in values])
            del values
        parts = [part.requires_grad_() for part in mixed.parts]
        del mixed
        with torch.enable_grad(), self.autocast():
            out = self.branch("across", parts, self.memo, group)
        edge, whole = graph_edge(out), out.detach()
        del out
        grad_out = torch.empty_like(whole)
        for tile in self._tiles:
            grad_out[:, tile] = self._run_after(whole, group, tile)
        del whole
        grads = torch.autograd.grad([edge], parts, [grad_out])
        del parts, edge, grad_out
        for index, tile in enumerate(self._tiles):
            tile_grads = [grad[:, tile] for grad in grads]
            grad = self._backward(self._before, edges[index], tile_grads, leaves[index], tile)
            self.grad_read[:, tile].add_(grad)
            edges[index] = leaves[index] = None

    def _run_after(self, x: torch.Tensor, group: Any, tile: slice) -> torch.Tensor:
        """Evaluates and differentiates the last step of a tile; the gradient of its input."""
        leaf = self._leaf(x, tile)
        with torch.enable_grad(), self.autocast():
            out = self.branch("after", leaf, self.memo, group, tile)
        if self.write is not None:
            self.write[:, tile].sub_(out.detach())
        grad_out = self.grad_write[:, tile].to(out.dtype)
        return self._backward(self._after, [out], [grad_out], leaf, tile)

    def _backward(
        self,
        gradients: ParameterGradients,
        outputs: list[Any],
        grad_outputs: list[torch.Tensor],
        leaf: torch.Tensor,
        tile: slice,
    ) -> torch.Tensor:
        if self._last_group and tile is self._tiles[-1]:
            gradients.release(outputs, grad_outputs)
            grad = leaf.grad
        else:
            (grad,) = gradients.collect(outputs, grad_outputs, [leaf])
        return torch.zeros_like(leaf) if grad is None else grad

    @staticmethod
    def _leaf(x: torch.Tensor, tile: slice) -> torch.Tensor:
        return x[:, tile].detach().requires_grad_()


def _owned(grads: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients of both streams, safe to be added to in place.

    Autograd may pass an expanded tensor, a view of a wider one, or the same tensor twice.
    """
    first, second = (g if g.is_contiguous() and g._base is None else g.clone() for g in grads)
    if first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr():
        second = second.clone()
    return [first, second]
