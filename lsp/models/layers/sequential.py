"""A stack of blocks on one stream, differentiated from the blocks' inputs alone.

    x = after(across(before(x)), x),  block by block

Where the published layer puts its norm after the sum (BERT, Longformer, Transformer-XL), a block
cannot be computed back from its output: its input is kept, and everything inside it is computed
again, tile by tile (2506.13996 calls this sequence tiling).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any

import torch
from torch import nn

from lsp.models.layers.tiling import (
    Autocast,
    Joined,
    ParameterGradients,
    graph_edge,
)


class Block(nn.Module, ABC):
    """y = after(across(before(x)), x).

    `before` and `after` treat each position by itself, and are evaluated tile by tile; `across`
    mixes positions and sees all of them. A block that does not mix positions has only `after`.

    The same input and memo must always give the same result: random numbers come from seeds in the
    memo. No parameter may be used both in `before` and in `after`.

    Attributes:
        mixes: Whether it mixes positions.
        brings: Whether `beside` gives anything.
    """

    mixes, brings = True, False

    def forward(self, step: str, *arguments: Any) -> Any:
        """Runs one step; through `__call__`, where hooks gather sharded parameters."""
        return getattr(self, step)(*arguments)

    def learned(self) -> Iterable[nn.Parameter]:
        """The parameters that the steps use."""
        return self.parameters()

    @abstractmethod
    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        """Runs of positions that cover the sequence."""

    def before(self, x_BKD: torch.Tensor, memo: Any, tile: slice) -> tuple[torch.Tensor, ...]:
        """From a tile of the input to what is mixed: (B, K, ...) each."""
        raise NotImplementedError

    def beside(self, memo: Any) -> tuple[torch.Tensor, ...]:
        """What is mixed with the positions and does not come from the stream; learns as `before`.

        It comes after what `before` gives, in any shapes.
        """
        return ()

    def across(self, mixed: Sequence[torch.Tensor], memo: Any) -> torch.Tensor:
        """Mixes positions: from (B, L, ...) each to (B, L, E). Learns nothing itself."""
        raise NotImplementedError

    @abstractmethod
    def after(
        self, mixed_BKE: torch.Tensor | None, x_BKD: torch.Tensor, memo: Any, tile: slice
    ) -> torch.Tensor:
        """From a tile of what was mixed, and of the input, to that of the result: (B, K, D)."""


def run_blocks(
    x_BLD: torch.Tensor, blocks: Sequence[Block], memos: Sequence[Any], *, recompute: bool = True
) -> torch.Tensor:
    """Runs a stream through the blocks.

    Args:
        x_BLD: (B, L, D) start.
        blocks: Each is called through `__call__`, in the forward and again in the backward pass,
            so hooks that gather sharded parameters run; every parameter's gradient arrives once.
        memos: One per block, handed to every call of it.
        recompute: Whether only the blocks' inputs are kept for the backward pass; otherwise
            everything is (plain autograd).

    Returns:
        (B, L, D).
    """
    for block, memo in zip(blocks, memos, strict=True):
        differentiate = torch.is_grad_enabled() and (
            x_BLD.requires_grad or any(p.requires_grad for p in block.learned())
        )
        if differentiate and not recompute:
            x_BLD = _stored(x_BLD, block, memo)
        else:
            # Backward only visits a node that has an input which requires a gradient.
            anchor = torch.empty(0, device=x_BLD.device, requires_grad=differentiate)
            x_BLD = _Recomputed.apply(anchor, x_BLD, block, memo)
    return x_BLD


def _stored(x_BLD: torch.Tensor, block: Block, memo: Any) -> torch.Tensor:
    tiles = block.tiles(x_BLD)
    mixed = None
    if block.mixes:
        parts = [block("before", x_BLD[:, tile], memo, tile) for tile in tiles]
        joined = [torch.cat(part, dim=1) for part in zip(*parts, strict=True)]
        mixed = block("across", [*joined, *_beside(block, memo)], memo)
    outs = [
        block("after", None if mixed is None else mixed[:, tile], x_BLD[:, tile], memo, tile)
        for tile in tiles
    ]
    return torch.cat(outs, dim=1)


def _beside(block: Block, memo: Any) -> tuple[torch.Tensor, ...]:
    # A call may be a collective, where weights are sharded.
    return block("beside", memo) if block.brings else ()


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, x_BLD: torch.Tensor, block: Block, memo: Any
    ) -> torch.Tensor:
        ctx.block, ctx.memo, ctx.autocast = block, memo, Autocast(x_BLD.device.type)
        ctx.save_for_backward(x_BLD)
        out, mixed = Joined(x_BLD.shape[1]), None
        with ctx.autocast():
            tiles = block.tiles(x_BLD)
            if block.mixes:
                before = Joined(x_BLD.shape[1])
                for tile in tiles:
                    before.put(tile, block("before", x_BLD[:, tile], memo, tile))
                mixed = block("across", [*before.parts, *_beside(block, memo)], memo)
                del before
            for tile in tiles:
                mixed_BKE = None if mixed is None else mixed[:, tile]
                # Between blocks the stream keeps its type, whatever autocast computes in.
                y_BKD = block("after", mixed_BKE, x_BLD[:, tile], memo, tile)
                out.put(tile, [y_BKD.to(x_BLD.dtype)])
        return out.parts[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BLD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x_BLD,) = ctx.saved_tensors
        grad = _Differentiation(ctx.block, ctx.memo, x_BLD, grad_BLD, ctx.autocast).run()
        return None, grad if ctx.needs_input_grad[1] else None, None, None


class _Differentiation:
    """One block, evaluated again from its input and differentiated, part by part."""

    def __init__(
        self,
        block: Block,
        memo: Any,
        x_BLD: torch.Tensor,
        grad_BLD: torch.Tensor,
        autocast: Autocast,
    ) -> None:
        self.block, self.memo, self.autocast = block, memo, autocast
        self.x_BLD, self.grad_out = x_BLD, grad_BLD
        self.grad_in = torch.empty_like(x_BLD)
        self.tiles = block.tiles(x_BLD)

    def run(self) -> torch.Tensor:
        """The gradient of the block's input; those of its parameters land in their `.grad`."""
        if not self.block.mixes:
            self._after(None)
            return self.grad_in
        before = Joined(self.x_BLD.shape[1])
        edges: list[Any] = []
        leaves: list[Any] = []
        for tile in self.tiles:
            leaf = self._leaf(self.x_BLD, tile)
            with torch.enable_grad(), self.autocast():
                values = self.block("before", leaf, self.memo, tile)
            before.put(tile, values)
            leaves.append(leaf)
            edges.append([graph_edge(value) for value in values])
            del values
        with torch.enable_grad(), self.autocast():
            beside = _beside(self.block, self.memo)
        # What frozen weights give without the stream has no graph.
        learning = [value.requires_grad for value in beside]
        edges_beside = [graph_edge(value) for value in compress(beside, learning)]
        parts = [part.detach().requires_grad_() for part in (*before.parts, *beside)]
        del before, beside
        with torch.enable_grad(), self.autocast():
            out = self.block("across", parts, self.memo)
        edge, mixed = graph_edge(out), out.detach()
        del out
        grad_mixed = self._after(mixed)
        del mixed
        grads = torch.autograd.grad([edge], parts, [grad_mixed])
        del parts, edge, grad_mixed
        gradients = ParameterGradients(self.block.learned())
        of_stream = len(grads) - len(learning)
        if edges_beside:
            gradients.collect(edges_beside, list(compress(grads[of_stream:], learning)), [])
        grads = grads[:of_stream]
        del edges_beside
        for index, tile in enumerate(self.tiles):
            wanted = [grad[:, tile] for grad in grads]
            (grad,) = self._backward(gradients, edges[index], wanted, [leaves[index]], tile)
            self.grad_in[:, tile].add_(grad)
            edges[index] = leaves[index] = None
        return self.grad_in

    def _after(self, mixed_BLE: torch.Tensor | None) -> torch.Tensor:
        """Differentiates the last step; the gradient of what was mixed, if anything was."""
        gradients = ParameterGradients(self.block.learned())
        grad_mixed = torch.empty_like(self.x_BLD if mixed_BLE is None else mixed_BLE)
        for tile in self.tiles:
            leaves = [self._leaf(self.x_BLD, tile)]
            if mixed_BLE is not None:
                leaves.append(self._leaf(mixed_BLE, tile))
            mixed = leaves[1] if mixed_BLE is not None else None
            with torch.enable_grad(), self.autocast():
                out = self.block("after", mixed, leaves[0], self.memo, tile)
            wanted = [self.grad_out[:, tile].to(out.dtype)]
            grads = self._backward(gradients, [out], wanted, leaves, tile)
            self.grad_in[:, tile] = grads[0]
            if mixed_BLE is not None:
                grad_mixed[:, tile] = grads[1]
        return grad_mixed

    def _backward(
        self,
        gradients: ParameterGradients,
        outputs: list[Any],
        grad_outputs: list[torch.Tensor],
        leaves: list[torch.Tensor],
        tile: slice,
    ) -> list[torch.Tensor]:
        if tile is self.tiles[-1]:
            gradients.release(outputs, grad_outputs)
            grads = [leaf.grad for leaf in leaves]
        else:
            grads = gradients.collect(outputs, grad_outputs, leaves)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]

    @staticmethod
    def _leaf(x: torch.Tensor, tile: slice) -> torch.Tensor:
        return x[:, tile].detach().requires_grad_()
