"""Runs a plain function on several gloo processes and returns what each of them returned."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from tests.processes import forkserver


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables that a launcher sets."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def run_distributed(
    function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any
) -> list[Any]:
    """Calls `function(*arguments)` on every rank; a failure of one fails the test."""
    folder.mkdir(parents=True, exist_ok=True)
    forkserver()  # what it imports, it imports once
    mp.start_processes(
        _entry,
        (function, world_size, free_port(), str(folder), arguments),
        nprocs=world_size,
        start_method="forkserver",
    )
    return [
        torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(world_size)
    ]


def _entry(
    rank: int,
    function: Callable[..., Any],
    world_size: int,
    port: int,
    folder: str,
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= environment(rank, world_size, port)
    torch.set_num_threads(1)
    torch.save(function(*arguments), Path(folder) / f"result-{rank}.pt")
