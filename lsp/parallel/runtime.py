"""Starting and ending the processes' common state, through accelerate."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import HashStore, PrefixStore
from torch.distributed.rendezvous import rendezvous

from lsp.core import exit_file, ranks
from lsp.core.errors import UserError, require
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.parallel.collectives import barrier, forget_groups, is_distributed
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.sequence import make_exchange

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
"""What a launcher would tell a single process; accelerate and DeepSpeed read it even where a group
already exists, and accelerate makes one of it where there is none."""


@dataclass(frozen=True)
class Runtime:
    """What a prepared process knows of its surroundings.

    Attributes:
        device: Where the model lives.
        rank: Number of this process.
        world_size: How many there are.
        exchange: Between the processes that share the positions of the same rows, which are
            neighbours in rank.
    """

    device: torch.device
    rank: int
    world_size: int
    exchange: Exchange = WHOLE_ROWS

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def data_degree(self) -> int:
        """How many processes, or groups that share rows, have rows of their own."""
        return self.world_size // self.exchange.degree

    @property
    def data_rank(self) -> int:
        """Number of this process, or of its group, among those."""
        return self.rank // self.exchange.degree


def choose_device(parallelism: ParallelismConfig) -> torch.device:
    """The device of this process.

    Raises:
        UserError: If CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    require(
        parallelism.device != "cuda" or available,
        "parallelism.device=cuda but torch finds no GPU here; use parallelism.device=cpu or auto",
    )
    if available and parallelism.device != "cpu":
        count = torch.cuda.device_count()
        require(
            ranks.local_rank() < count,
            f"LOCAL_RANK={ranks.local_rank()} but this machine has {count} GPU(s); "
            f"start at most {count} processes per machine",
        )
        return torch.device("cuda", ranks.local_rank())
    return torch.device("cpu")


@contextmanager
def runtime(parallelism: ParallelismConfig) -> Iterator[Runtime]:
    """Joins the process group where there is one, and leaves it in good order.

    Gloo's threads abort a process at random when the interpreter ends under them: a barrier, an
    explicit end of the group and a moment for its threads avoid that.
    """
    device = choose_device(parallelism)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = ranks.world_size()
    own = {} if world > 1 or parallelism.strategy == "single" else ALONE
    added = {name: value for name, value in own.items() if name not in os.environ}
    os.environ |= added
    clean = False
    try:
        if parallelism.strategy != "single":
            _init_process_group(device, parallelism, world)
        exchange = make_exchange(parallelism.sequence, parallelism.timeout_seconds)
        yield Runtime(device, ranks.rank() if world > 1 else 0, world, exchange)
        clean = True
    finally:
        if is_distributed():
            if clean:
                barrier()
            forget_groups()
            torch.distributed.destroy_process_group()
            gc.collect()
            time.sleep(0.1)
        forget_engine()
        for name in added:
            del os.environ[name]


def forget_engine() -> None:
    """Makes room for another engine, in a run or after it.

    Accelerate keeps an engine's precision and plugin per interpreter, and DeepSpeed's engines are
    in cycles, which hold a whole model until they are collected.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def _init_process_group(device: torch.device, parallelism: ParallelismConfig, world: int) -> None:
    """Joins the group that the launcher's variables describe; alone, a group of one."""
    options: dict[str, Any] = {}
    patience = timedelta(seconds=parallelism.timeout_seconds)
    if world == 1:
        options = {"store": HashStore(), "rank": 0, "world_size": 1}
    try:
        if ranks.on_one_machine() and world > 1:
            # torchrun's own store outlives workers that it restarts: without a name for the
            # attempt, those would wait at the addresses of the dead. Between machines the
            # attempts are counted differently, as a machine that comes back begins at 0;
            # `launch/env.sh` has torchrun make a new store there.
            store, number, _ = next(rendezvous("env://", timeout=patience))
            store = PrefixStore(f"attempt-{exit_file.attempt()}", store)
            options = {"store": store, "rank": number, "world_size": world}
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=patience,
            **options,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"parallelism={parallelism.strategy}: the {world} processes could not meet "
            f"({str(error).splitlines()[0]}). Start them with torchrun, or use parallelism=single"
        ) from error


def check_precision(precision: PrecisionConfig, device: torch.device) -> None:
    """Refuses number formats that the device cannot train in."""
    require(
        precision.name != "fp16" or device.type == "cuda",
        f"precision=fp16 needs a GPU, and this run is on {device.type}; use precision=bf16 or fp32",
    )
