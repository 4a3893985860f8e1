"""Position-wise computation over the sequence, tile by tile, forward and backward.

With T tiles, what a feed-forward layer or a language-model head creates per position exists for
L / T positions at a time (ALST, 2506.13996, calls this sequence tiling).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from lsp.models.layers.dropout import derive_seed
from lsp.models.memory import MemoryConfig


def tile_spans(length: int, tiles: int) -> list[slice]:
    """Cuts `range(length)` into runs whose lengths differ by at most one.

    There are never more runs than positions, and together they always cover all of them.
    """
    tiles = max(1, min(tiles, length))
    edges = [length * i // tiles for i in range(tiles + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def head_spans(
    x_BLD: torch.Tensor, heads: int, size: int, memory: MemoryConfig, *, multiple: int
) -> list[slice]:
    """Cuts the heads of an attention into groups that are evaluated one after the other.

    Args:
        x_BLD: (B, L, D) what attention reads: a tensor of one group is within the budget of a
            tile, or a quarter of this.
        heads: How many there are.
        size: Width of a head.
        memory: How many groups there are, or how much a tile may take.
        multiple: What each group's number of heads has to be a multiple of.
    """
    groups = memory.attention_groups
    if groups == 0:
        stream = x_BLD.numel() * x_BLD.element_size()
        one_head = stream * size / x_BLD.shape[2]
        allowed = max(memory.tile_bytes(x_BLD.device.type), stream / 4)
        groups = -(-heads // max(1, int(allowed / one_head)))
    spans = tile_spans(heads // multiple, groups)
    return [slice(span.start * multiple, span.stop * multiple) for span in spans]


class Autocast:
    """The caller's autocast state, to be entered again where its computation is repeated.

    The cache of cast weights stays off: a copy made without gradients must not be found later by
    a computation that needs them.
    """

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._enabled = torch.is_autocast_enabled(device_type)
        self._dtype = torch.get_autocast_dtype(device_type)

    def __call__(self) -> torch.autocast:
        return torch.autocast(
            self._device_type, dtype=self._dtype, enabled=self._enabled, cache_enabled=False
        )


class Joined:
    """Tensors over the whole sequence, filled tile by tile.

    Attributes:
        parts: (B, L, ...) each.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self.parts: list[torch.Tensor] = []

    def put(self, tile: slice, values: Sequence[torch.Tensor]) -> None:
        """Takes a tile's values: (B, K, ...) each, as many as for every other tile."""
        values = [value.detach() for value in values]
        if tile.stop - tile.start == self._length:
            self.parts = values
            return
        if not self.parts:
            self.parts = [v.new_empty((len(v), self._length, *v.shape[2:])) for v in values]
        for part, value in zip(self.parts, values, strict=True):
            part[:, tile] = value


def graph_edge(value: torch.Tensor) -> Any:
    """The graph behind a tensor, without its numbers."""
    return torch.autograd.graph.get_gradient_edge(value)


class ParameterGradients:
    """Gradients of a function that is differentiated in pieces, handed over as one.

    Hooks on a parameter's gradient (DDP's and ZeRO's reductions) expect to run once per
    micro-batch. All pieces but the last are therefore differentiated with `autograd.grad`, which
    runs no hook; the last with `autograd.backward`, where what was collected is added on the way.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._sums: list[torch.Tensor | None] = [None] * len(self._parameters)

    def collect(
        self,
        outputs: Sequence[Any],
        grad_outputs: Sequence[torch.Tensor | None],
        inputs: Sequence[torch.Tensor],
    ) -> list[torch.Tensor | None]:
        """Differentiates a piece that is not the last; gradients of `inputs` are returned."""
        grads = torch.autograd.grad(
            outputs, [*inputs, *self._parameters], grad_outputs, allow_unused=True
        )
        for i, grad in enumerate(grads[len(inputs) :]):
            if grad is None:
                continue
            total = self._sums[i]
            # Many small gradients are added: in low precision the late ones would be lost.
            wide = torch.promote_types(grad.dtype, torch.float32)
            self._sums[i] = grad.to(wide) if total is None else total.add_(grad)
        return list(grads[: len(inputs)])

    def scale(self, factor: torch.Tensor) -> None:
        """Multiplies what was collected by a scalar."""
        for total in self._sums:
            if total is not None:
                total.mul_(factor)

    def release(self, outputs: Sequence[Any], grad_outputs: Sequence[torch.Tensor | None]) -> None:
        """Differentiates the last piece; gradients of its leaves land in their `.grad`."""
        waiting = {i: total for i, total in enumerate(self._sums) if total is not None}

        def adder(i: int) -> Callable[[torch.Tensor], torch.Tensor]:
            def add(grad: torch.Tensor) -> torch.Tensor:
                return waiting.pop(i).add_(grad).to(grad.dtype) if i in waiting else grad

            return add

        hooks = [self._parameters[i].register_hook(adder(i)) for i in list(waiting)]
        torch.autograd.backward(outputs, grad_outputs)
        for hook in hooks:
            hook.remove()
        for i, total in waiting.items():  # used by an earlier piece, but not by the last
            parameter = self._parameters[i]
            with torch.enable_grad():
                same = parameter.view_as(parameter)
            torch.autograd.backward(same, total.to(parameter.dtype))
        self._sums = [None] * len(self._parameters)


def tiled(
    fn: Callable[..., torch.Tensor],
    x_BLD: torch.Tensor,
    tiles: int,
    *,
    seed: int | None = None,
    parameters: Iterable[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Applies a position-wise function over the sequence, tile by tile.

    Nothing inside `fn` ever exists for more than a tile: the backward pass computes each tile
    again before it differentiates it. Every parameter's gradient arrives once.

    Args:
        fn: From (B, K, D) to (B, K, E), each position by itself. A module is called through its
            `__call__`, so that hooks which gather sharded parameters run.
        x_BLD: (B, L, D) input.
        tiles: How many; they need not divide L.
        seed: Where given, `fn` is called with a keyword `seed` that differs from tile to tile
            and is the same in the forward and the backward pass.
        parameters: What `fn` learns; a module's own parameters where left out.

    Returns:
        (B, L, E).
    """
    spans = tile_spans(x_BLD.shape[1], tiles)
    if parameters is None:
        parameters = fn.parameters() if isinstance(fn, nn.Module) else ()
    learned = [p for p in parameters if p.requires_grad]

    def run(x_BKD: torch.Tensor, index: int) -> torch.Tensor:
        return fn(x_BKD) if seed is None else fn(x_BKD, seed=derive_seed(seed, index))

    if len(spans) == 1:
        return run(x_BLD, 0)
    if not (torch.is_grad_enabled() and (x_BLD.requires_grad or learned)):
        return _forward_tiles(run, x_BLD, spans)
    # Backward only visits a node that has an input which requires a gradient.
    anchor = torch.empty(0, device=x_BLD.device, requires_grad=True)
    return _Tiled.apply(anchor, x_BLD, run, spans, learned)


def _forward_tiles(
    run: Callable[[torch.Tensor, int], torch.Tensor], x_BLD: torch.Tensor, spans: list[slice]
) -> torch.Tensor:
    out_BLE = None
    for index, span in enumerate(spans):
        out_BKE = run(x_BLD[:, span], index)
        if out_BLE is None:
            out_BLE = out_BKE.new_empty((*x_BLD.shape[:2], *out_BKE.shape[2:]))
        out_BLE[:, span] = out_BKE
    assert out_BLE is not None
    return out_BLE


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        x_BLD: torch.Tensor,
        run: Callable[[torch.Tensor, int], torch.Tensor],
        spans: list[slice],
        learned: list[torch.Tensor],
    ) -> torch.Tensor:
        ctx.run, ctx.spans, ctx.learned = run, spans, learned
        ctx.autocast = Autocast(x_BLD.device.type)
        ctx.save_for_backward(x_BLD)
        with ctx.autocast():
            return _forward_tiles(run, x_BLD, spans)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BLE: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x_BLD,) = ctx.saved_tensors
        needs_input = ctx.needs_input_grad[1]
        grad_BLD = torch.empty_like(x_BLD) if needs_input else None
        gradients = ParameterGradients(ctx.learned)
        last = len(ctx.spans) - 1
        for index, span in enumerate(ctx.spans):
            x_BKD = x_BLD[:, span].detach().requires_grad_(needs_input)
            with torch.enable_grad(), ctx.autocast():
                out_BKE = ctx.run(x_BKD, index)
            if index < last:
                inputs = [x_BKD] if needs_input else []
                grads = gradients.collect([out_BKE], [grad_BLE[:, span]], inputs)
            else:
                gradients.release([out_BKE], [grad_BLE[:, span]])
                grads = [x_BKD.grad]
            if grad_BLD is not None:
                grad_BLD[:, span] = 0 if grads[0] is None else grads[0]
        return None, grad_BLD, None, None, None
