"""Sequence parallelism: the processes of a group share the positions of the same rows.

Attention by heads is that of DeepSpeed Ulysses (2309.14509, section 3): before it, an all-to-all
turns all heads of some positions into some heads of all positions, and another one after it turns
them back. Attention that sees only neighbouring chunks exchanges those chunks alone (a halo).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lsp.models.layers.exchange import WHOLE_ROWS, Exchange


def make_exchange(degree: int, timeout_seconds: int) -> Exchange:
    """The exchange of this process; every process must call it.

    Neighbouring ranks form a group, since what is exchanged most should have the shortest way.

    Args:
        degree: Processes that share a row; divides their number.
        timeout_seconds: How long an exchange may wait.
    """
    if degree == 1:
        return WHOLE_ROWS
    rank, world = dist.get_rank(), dist.get_world_size()
    own: dist.ProcessGroup | None = None
    for first in range(0, world, degree):
        members = range(first, first + degree)
        group = dist.new_group(list(members), timeout=timedelta(seconds=timeout_seconds))
        if rank in members:
            own = group
    assert own is not None
    return ProcessExchange(own, degree, rank % degree)


class ProcessExchange(Exchange):
    """Exchanges between the processes of a group, differentiable where attention needs it.

    Args:
        group: Whose processes hold a row's shares, in row order.
        degree: How many they are.
        index: Number of this one.
    """

    def __init__(self, group: dist.ProcessGroup, degree: int, index: int) -> None:
        self.group, self.degree, self.index = group, degree, index

    def whole(self, x_BL: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x_BL) for _ in range(self.degree)]
        dist.all_gather(parts, x_BL.contiguous(), group=self.group)
        return torch.cat(parts, dim=1)

    def to_heads(self, xs_BLE: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        # All of them in one exchange: T tensors, P shares.
        stacked = torch.stack(list(xs_BLE))
        x_TBLPE = stacked.view(*stacked.shape[:3], self.degree, -1)
        x_PTBLE = _swapped(x_TBLPE.movedim(3, 0), self.group)
        return list(x_PTBLE.movedim(0, 2).flatten(2, 3))

    def to_positions(self, x_BLE: torch.Tensor) -> torch.Tensor:
        batch, length, width = x_BLE.shape
        x_BPLE = x_BLE.reshape(batch, self.degree, length // self.degree, width)
        return _swapped(x_BPLE.movedim(1, 0), self.group).movedim(0, 2).flatten(2)

    def outer(self, xs_BLE: Sequence[torch.Tensor], before: int, after: int) -> list[torch.Tensor]:
        x_TBLE = torch.stack(list(xs_BLE))
        length = x_TBLE.shape[2]
        to_next, to_previous = x_TBLE[:, :, length - before :], x_TBLE[:, :, :after]
        return list(_Halo.apply(to_next, to_previous, self))  # type: ignore[no-untyped-call]


class _Swap(torch.autograd.Function):
    """Slice j of the first dimension goes to process j; undone, and differentiated, by itself."""

    @staticmethod
    def forward(ctx: Any, x_P: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _swap(x_P, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_P: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _swap(grad_P, ctx.group), None


def _swapped(x_P: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    out_P: torch.Tensor = _Swap.apply(x_P, group)  # type: ignore[no-untyped-call]
    return out_P


def _swap(x_P: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    x_P = x_P.contiguous()
    out_P = torch.empty_like(x_P)
    dist.all_to_all_single(out_P, x_P, group=group)
    return out_P


class _Halo(torch.autograd.Function):
    """Sends the last positions to the next process on the ring, and the first to the previous.

    Gives what came from the previous process and then what came from the next: (T, B, O, E).
    """

    @staticmethod
    def forward(
        ctx: Any, to_next: torch.Tensor, to_previous: torch.Tensor, exchange: ProcessExchange
    ) -> torch.Tensor:
        ctx.exchange, ctx.split = exchange, to_next.shape[2]
        from_previous, from_next = _pass_on(to_next, to_previous, exchange)
        return torch.cat([from_previous, from_next], dim=2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        # What came from the previous process goes back to it.
        back_to_previous, back_to_next = grad[:, :, : ctx.split], grad[:, :, ctx.split :]
        from_previous, from_next = _pass_on(back_to_next, back_to_previous, ctx.exchange)
        return from_next, from_previous, None


def _pass_on(
    to_next: torch.Tensor, to_previous: torch.Tensor, exchange: ProcessExchange
) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes from the previous process, shaped as `to_next`, and from the next.

    One uneven all-to-all, in which all but the neighbours get nothing. With two processes both
    parts go to the same one, the part for the next first.
    """
    degree, index = exchange.degree, exchange.index
    following, previous = (index + 1) % degree, (index - 1) % degree
    send, receive = [0] * degree, [0] * degree
    send[following] += to_next.numel()
    send[previous] += to_previous.numel()
    receive[previous] += to_next.numel()
    receive[following] += to_previous.numel()
    parts = {following: [to_next.flatten()]}
    parts.setdefault(previous, []).append(to_previous.flatten())
    outgoing = torch.cat([part for peer in sorted(parts) for part in parts[peer]])
    incoming = torch.empty_like(outgoing)
    dist.all_to_all_single(incoming, outgoing, receive, send, group=exchange.group)
    starts = [sum(receive[:peer]) for peer in range(degree)]
    first = incoming[starts[previous] :][: to_next.numel()]
    offset = to_next.numel() if following == previous else 0
    second = incoming[starts[following] + offset :][: to_previous.numel()]
    return first.view(to_next.shape), second.view(to_previous.shape)
