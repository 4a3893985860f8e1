"""The few collectives that the trainer itself needs; each works without a process group too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_pipelines.errors import DataError
from lsp.core.errors import LeakError, UserError
from lsp.core.exit_codes import BUG, LEAK, USER_ERROR
from lsp.core.ranks import leave_quietly

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long processes wait for one that prepares data, which may take any time."""


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
    """Waits for every process, however long it takes."""
    if is_distributed():
        dist.barrier(group=_patient_group())


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Adds up a few numbers over all processes, in float64.

    With several processes this reads the result back to the host, which on a GPU waits for all
    queued work.
    """
    if not is_distributed():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    result: list[float] = tensor.tolist()
    return result


def on_any_rank(flag: bool) -> bool:
    """Whether `flag` holds on any process; asked over the host's network, no GPU is waited for."""
    if not is_distributed():
        return flag
    tensor = torch.tensor([float(flag)])
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_patient_group())
    return bool(tensor.item())


def broadcast_object(value: T) -> T:
    """Rank 0's value, on every process, however long it takes rank 0 to come to it."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_patient_group())
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Every process's value in the order of ranks, on every process, however long it takes."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_patient_group())
    return values


@lru_cache(maxsize=1)
def _patient_group() -> dist.ProcessGroup:
    """A group over the host's network whose members wait longer than `timeout_seconds`."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
    return group


def forget_groups() -> None:
    """Lets go of groups, so that they can be ended in good order."""
    _patient_group.cache_clear()


def main_process_only(work: Callable[[], T]) -> T | None:
    """Runs `work` on rank 0 while the others wait; they get None.

    If it fails, rank 0 raises and the others leave with the same exit code and without a word,
    so that nobody is left waiting and the user is told once.
    """
    if not is_distributed():
        return work()
    result: T | None = None
    failure: Exception | None = None
    if rank() == 0:
        try:
            result = work()
        except Exception as error:
            failure = error
    code = broadcast_object(_exit_code(failure))
    if failure is not None:
        raise failure
    if code is not None:
        leave_quietly(code)
    return result


def main_process_first(work: Callable[[], T]) -> T:
    """Runs `work` on rank 0, then on the others, who then find it done."""
    first = main_process_only(work)

    def follow() -> T:
        return work() if rank() != 0 else first  # type: ignore[return-value]

    return together(follow)


def together(work: Callable[[], T]) -> T:
    """Runs `work`, which holds no collective, on every process; if one fails, all end.

    The first that failed raises; the others leave with the same exit code and without a word.
    """
    if not is_distributed():
        return work()
    result: T | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    codes = gather_objects(_exit_code(failure))
    failed = [number for number, code in enumerate(codes) if code is not None]
    if failed and rank() == failed[0]:
        assert failure is not None
        raise failure
    if failed:
        code = codes[failed[0]]
        assert code is not None
        leave_quietly(code)
    return result  # type: ignore[return-value]


def _exit_code(failure: Exception | None) -> int | None:
    if failure is None:
        return None
    if isinstance(failure, LeakError):
        return LEAK
    return USER_ERROR if isinstance(failure, UserError | DataError) else BUG
