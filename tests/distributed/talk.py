"""What the processes of the tests of collectives do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from data_pipelines.errors import DataError
from lsp.core.errors import UserError
from lsp.parallel import collectives
from lsp.parallel.config import ParallelismConfig
from lsp.parallel.runtime import runtime


def talk() -> dict[str, Any]:
    """Every way in which one process can succeed or fail while others wait."""
    found: dict[str, Any] = {}
    # A second is all that a collective may take; waiting for rank 0 may take longer.
    settings = ParallelismConfig(strategy="ddp", device="cpu", timeout_seconds=1)
    with runtime(settings) as place:
        rank = place.rank
        found["slow"] = collectives.main_process_first(lambda: _slowly(rank))
        found["only"] = collectives.main_process_only(lambda: f"rank {rank}")
        found["broadcast"] = collectives.broadcast_object({"from": rank})
        found["sum"] = collectives.sum_over_ranks([rank + 1.0, 0.5], torch.device("cpu"))
        found["together"] = collectives.together(lambda: rank)
        found["main fails"] = _end(lambda: collectives.main_process_first(lambda: _fail(rank, 0)))
        found["other fails"] = _end(lambda: collectives.together(lambda: _fail(rank, 1)))
        found["follower fails"] = _end(
            lambda: collectives.main_process_first(lambda: _fail(rank, 1))
        )
        found["all fail"] = _end(lambda: collectives.together(lambda: _fail(rank, rank)))
        found["data"] = _end(lambda: collectives.together(lambda: _fail(rank, 0, DataError)))
        found["bug"] = _end(lambda: collectives.together(lambda: _fail(rank, 0, KeyError)))
    return found


def _slowly(rank: int) -> int:
    time.sleep(2.5 if rank == 0 else 0)
    return rank


def _fail(rank: int, who: int, error: type[Exception] = UserError) -> None:
    if rank == who:
        raise error(f"told by rank {rank}")


def _end(work: Callable[[], Any]) -> str:
    try:
        work()
    except SystemExit as leaving:
        return f"leaves with {leaving.code}"
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
    return "goes on"
