"""`parallelism=auto`: the first strategy whose state fits, and why."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from lsp.models.interface import LanguageModel
from lsp.parallel.collectives import gather_objects, together
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.memory import host_bytes, state_bytes
from lsp.parallel.offload import check_offload
from lsp.parallel.runtime import Runtime

DEVICE_SHARE = 0.9
"""Share of a device's free memory that is dealt out: allocators leave gaps, estimates err."""

STATE_SHARE = 0.6
"""Share of it that the state may take where a model cannot tell how much its activations need."""

HOST_SHARE = 0.8
"""Share of the host's free memory that offloaded state may take."""

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Situation:
    """What a strategy is chosen from.

    Attributes:
        parameters: Trained elements of the model.
        processes: How many share it.
        precision: `fp32`, `bf16` or `fp16`.
        optimizer: `AdamW`, `Adafactor` or `Muon`.
        device_bytes: Free memory for a process on the fullest device; on a CPU its part of the
            host's.
        host_bytes: Free memory of the host for a process beside a GPU; 0 on a CPU, where nothing
            is gained by leaving the device.
        activations: Bytes of a pass beside the state; 0 where the model cannot tell.
        nvme: Whether there is a folder to offload to.
    """

    parameters: int
    processes: int
    precision: str
    optimizer: str
    device_bytes: int
    host_bytes: int
    activations: int = 0
    nvme: bool = False


@dataclass(frozen=True)
class Choice:
    """A strategy, and the sentence that says why."""

    strategy: str
    reason: str


def choose(situation: Situation, *, bucket: int, live: int) -> Choice:
    """The first strategy that fits, those that communicate least first.

    Args:
        situation: The model and the machines.
        bucket: Elements of a gradient bucket.
        live: Elements that ZeRO-3 may keep gathered.
    """
    room = int(situation.device_bytes * DEVICE_SHARE)
    if situation.activations:
        room = max(0, room - situation.activations)
        beside = f"beside {_gib(situation.activations)} of activations"
    else:
        room = int(room * STATE_SHARE)
        beside = f"at most {STATE_SHARE:.0%}, beside activations"
    needs: dict[str, int] = {}
    for name in candidates(situation):
        model = (name, situation.parameters, situation.processes, situation.precision)
        if host_bytes(*model, situation.optimizer) > situation.host_bytes * HOST_SHARE:
            continue
        state = state_bytes(*model, situation.optimizer, bucket=bucket, live=live)
        needs[name] = sum(state.values())
        if needs[name] <= room:
            break
    strategy = min(needs, key=needs.__getitem__)
    fits = needs[strategy] <= room
    passed = [f"{name} {_gib(needs[name])}" for name in needs if name != strategy]
    reason = (
        f"parallelism: auto chose {strategy} for {situation.parameters:,} parameters on "
        f"{situation.processes} process(es): it leaves {_gib(needs[strategy])} of weights, "
        f"gradients and optimizer state on each device, where they may take {_gib(room)} of "
        f"{_gib(situation.device_bytes)} that are free ({beside})"
    )
    if passed:
        reason += f"; {', '.join(passed)} would not fit"
    if not fits:
        reason += "; nor is this sure to fit: use more processes or a smaller model"
    return Choice(strategy, reason)


def candidates(situation: Situation) -> list[str]:
    """Strategies that could train, in the order in which they are tried."""
    several, offload = situation.processes > 1, situation.host_bytes > 0
    names = ["ddp" if several else "single"]
    if situation.optimizer != "AdamW":
        return names
    if several and situation.precision != "bf16":  # there, ZeRO-1 runs as ZeRO-2
        names.append("zero1")
    if several:
        names += ["zero2", "zero3"]
    if offload and situation.precision != "bf16":  # there, it adds up micro-batches in bf16
        names.append("zero2_offload")
    if offload:
        names.append("zero3_offload")
    if offload and situation.nvme:
        names.append("zero3_nvme")
    return names


def resolve(
    parallelism: ParallelismConfig,
    precision: PrecisionConfig,
    optimizer: str,
    model: LanguageModel,
    place: Runtime,
    *,
    rows: int,
    length: int,
) -> Choice:
    """Decides `auto` for this model on these machines, the same on every process.

    Args:
        parallelism: With `strategy=auto`.
        precision: Of the run.
        optimizer: `AdamW`, `Adafactor` or `Muon`.
        model: On the host.
        place: This process.
        rows: Of a micro-batch.
        length: Positions of a row that this process is given.

    Raises:
        UserError: The machine lacks what the strategy needs.
    """
    device, host = _smallest_free(place)
    activations = model.activation_bytes(rows, length, half=precision.name != "fp32")
    situation = Situation(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        processes=place.world_size,
        precision=precision.name,
        optimizer=optimizer,
        device_bytes=device,
        host_bytes=host,
        activations=sum(activations.values()),
        nvme=parallelism.offload.nvme_path is not None,
    )
    choice = choose(
        situation,
        bucket=parallelism.reduce_bucket_size,
        live=parallelism.max_live_parameters,
    )
    together(lambda: check_offload(replace(parallelism, strategy=choice.strategy)))
    return choice


def _smallest_free(place: Runtime) -> tuple[int, int]:
    """Free bytes for a process on its device and on its host, where there is least of each."""
    on_gpu = place.device.type == "cuda"
    free = torch.cuda.mem_get_info(place.device)[0] if on_gpu else 0
    everyone = gather_objects((socket.gethostname(), free, free_host_bytes()))
    processes = Counter(name for name, _, _ in everyone)
    host = min(here // processes[name] for name, _, here in everyone)
    return (min(there for _, there, _ in everyone), host) if on_gpu else (host, 0)


def free_host_bytes(cgroup: Path = CGROUP) -> int:
    """Memory of this machine, or of this container, that is not in use."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or an older kernel's
        pass
    return max(0, free)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
