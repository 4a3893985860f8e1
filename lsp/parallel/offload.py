"""Offload: DeepSpeed's CPU optimizer, and the extensions that it compiles on first use."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from lsp.core.errors import UserError, require
from lsp.parallel.config import ParallelismConfig


def check_offload(parallelism: ParallelismConfig) -> None:
    """Checks that this machine can do what the strategy asks for, before any heavy work.

    Raises:
        UserError: Something is missing; the message names it.
    """
    if parallelism.strategy == "auto" or parallelism.sharding.optimizer == "device":
        return
    nvme = parallelism.sharding.optimizer == "nvme"
    if nvme:
        _check_folder(Path(str(parallelism.offload.nvme_path)))
    missing = _missing_tools()
    if missing:
        raise UserError(
            f"parallelism={parallelism.strategy} compiles DeepSpeed's CPU optimizer when it is "
            f"first used, and this machine has no {', no '.join(missing)}: install them (Debian: "
            "apt-get install g++ ninja-build python3-dev), or use parallelism=zero2 or zero3"
        )
    if nvme and not _has_libaio():
        raise UserError(
            "parallelism=zero3_nvme needs libaio, which this machine lacks: install it (Debian: "
            "apt-get install libaio-dev), or use parallelism=zero3_offload"
        )


def _missing_tools() -> list[str]:
    _find_own_tools()
    compiler = os.environ.get("CXX", "c++")  # as torch chooses it
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    have = {
        f"C++ compiler ({compiler})": shutil.which(compiler),
        "ninja": shutil.which("ninja"),
        f"Python headers ({header})": header.is_file(),
    }
    return [name for name, found in have.items() if not found]


def _check_folder(folder: Path) -> None:
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(
            f"parallelism.offload.nvme_path={folder} is not a folder that can be written: make it, "
            "on a fast local disk"
        )


def _has_libaio() -> bool:
    """DeepSpeed asks by compiling a program, and talks while it does."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    with redirect_stdout(StringIO()):
        return bool(AsyncIOBuilder().is_compatible())


def load_extensions(parallelism: ParallelismConfig) -> None:
    """Loads what the strategy needs of DeepSpeed's C++, compiling it on first use (a minute).

    Raises:
        UserError: It does not compile, or does not load.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder

    _find_own_tools()
    builders = [CPUAdamBuilder()]
    if parallelism.sharding.optimizer == "nvme":
        builders.append(AsyncIOBuilder())
    with _one_compiles() as folder:
        for builder in builders:
            try:
                builder.load(verbose=False)
            except Exception as error:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise UserError(
                    f"parallelism={parallelism.strategy}: DeepSpeed's {builder.name} does not "
                    f"compile or load in {folder} ({reason[-1]}); delete that folder to compile it "
                    "anew, or use parallelism=zero2 or zero3"
                ) from error


def cpu_adam(optimizer: Optimizer) -> Optimizer:
    """DeepSpeed's CPU optimizer with the groups and settings of torch's AdamW.

    It computes the same (1711.05101), vectorised, on weights and state in host memory.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    assert isinstance(optimizer, AdamW)
    made: Optimizer = DeepSpeedCPUAdam(optimizer.param_groups, adamw_mode=True)
    made.register_step_pre_hook(_forget_powers)
    return made


def check_buffers(parallelism: ParallelismConfig, module: nn.Module, world_size: int) -> None:
    """Checks that a process's part of every weight fits into a buffer on its way from the disk.

    Raises:
        UserError: The largest does not.
    """
    if parallelism.sharding.weights != "nvme":
        return
    size = parallelism.offload.buffer_size
    largest = max(-(-p.numel() // world_size) for p in module.parameters())
    require(
        largest <= size,
        f"parallelism.offload.buffer_size={size} is below the {largest} elements that a process "
        f"has of the largest weight: use {largest} or more",
    )


def own_folder(parallelism: ParallelismConfig) -> ParallelismConfig:
    """Gives this process a folder of its own on the disk, if its strategy uses one.

    DeepSpeed's file names would be those of any other run there. The folder goes when the process
    ends; those that killed processes left, which nobody holds the lock of, go first.
    """
    if parallelism.sharding.optimizer != "nvme":
        return parallelism
    disk = Path(str(parallelism.offload.nvme_path))
    for left in disk.glob("lsp-*.lock"):
        with suppress(OSError), left.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(left)
    descriptor, name = tempfile.mkstemp(prefix="lsp-", suffix=".lock", dir=disk)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # held until this process ends
    atexit.register(_remove, Path(name))
    folder = Path(name).with_suffix("")
    folder.mkdir()
    return replace(parallelism, offload=replace(parallelism.offload, nvme_path=str(folder)))


def _remove(lock: Path) -> None:
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)


def _forget_powers(optimizer: Any, *_: object) -> None:
    """Makes the bias correction a function of the step alone.

    The extension multiplies its powers of beta from step to step, but takes them anew after a
    resume, which rounds differently. Other betas, on no element, make it forget.
    """
    nothing = torch.empty(0)
    optimizer.ds_opt_adam.adam_update(
        optimizer.opt_id, 1, 0.0, 0.0, 0.0, 1.0, 0.0, True, nothing, nothing, nothing, nothing
    )


def _find_own_tools() -> None:
    """ninja comes with DeepSpeed, into a folder that need not be on the path."""
    own = Path(sys.executable).parent
    if shutil.which("ninja") is None and (own / "ninja").is_file():
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(own)])


def _extensions_dir() -> Path:
    """Where this environment's extensions lie; where they share a folder, each rebuilds them."""
    from torch.utils.cpp_extension import get_default_build_root

    own = Path(sys.prefix)
    if os.access(own, os.W_OK):
        default = own / "torch_extensions"
    else:
        default = Path(get_default_build_root()) / own.name
    return Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(default)))


@contextmanager
def _one_compiles() -> Iterator[Path]:
    """Lets one process of a machine compile while the others wait and then find it done.

    torch has a lock of its own, a file that a killed process leaves behind and that the next one
    waits for without end. This one ends with its process, and its holder removes the other.

    Raises:
        UserError: There is no folder to compile in.
    """
    folder = _extensions_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lsp.lock").open("w")
    except OSError as error:
        raise UserError(
            f"TORCH_EXTENSIONS_DIR={folder}: DeepSpeed's extensions cannot be compiled there "
            f"({error.strerror}); set it to a folder that can be written"
        ) from error
    with lock:
        # Without locks, as on some network file systems, torch's own has to do.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in folder.glob("*/lock"):
                left.unlink(missing_ok=True)
        yield folder
