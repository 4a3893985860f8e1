"""The few collectives that the trainer itself needs; each works without a process group too."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if is_distributed() else 1


def barrier() -> None:
    """Waits for every process."""
    if is_distributed():
        dist.barrier()


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Adds up a few numbers over all processes, in float64.

    This reads the result back to the host, which on a GPU waits for all queued work.
    """
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    if is_distributed():
        dist.all_reduce(tensor)
    result: list[float] = tensor.tolist()
    return result


def broadcast_object(value: T) -> T:
    """Rank 0's value, on every process."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def first_failure(message: str | None) -> str | None:
    """The first message that any process gave, on every process; None where all gave None."""
    if not is_distributed():
        return message
    messages: list[str | None] = [None] * world_size()
    dist.all_gather_object(messages, message)
    return next((m for m in messages if m is not None), None)


def main_process_first(work: Callable[[], T]) -> T:
    """Runs `work` on rank 0, then on the others, who then find it done.

    If rank 0 fails, every rank raises, so that nobody is left waiting.
    """
    if not is_distributed():
        return work()
    failure: BaseException | None = None
    result: T | None = None
    if rank() == 0:
        try:
            result = work()
        except Exception as error:
            failure = error
    message = broadcast_object(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    if message is not None:
        # Rank 0 has already told the user; the others leave without a second copy.
        raise SystemExit(int(os.environ.get("LSP_FOLLOWER_EXIT", "2")))
    return work() if rank() != 0 else result  # type: ignore[return-value]
