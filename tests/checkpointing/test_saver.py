"""A snapshot is that of its moment, whole or absent, and what goes wrong with it is told."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lsp.checkpointing.files as files
import lsp.checkpointing.saver as saver_module
from lsp.checkpointing.config import CheckpointConfig
from lsp.checkpointing.saver import Saver
from lsp.checkpointing.snapshot import TrainState, read_snapshot
from lsp.checkpointing.store import CheckpointStore
from lsp.core.errors import UserError
from lsp.parallel.runtime import Runtime
from tests.processes import forkserver

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Weights:
    """Stands for an engine: two weights, which training would change."""

    runtime = Runtime(torch.device("cpu"), 0, 1)

    def __init__(self) -> None:
        self.values = {"a": torch.zeros(1000), "b": torch.zeros(10, 10)}
        self.consumed = 0

    def set(self, value: float) -> None:
        for tensor in self.values.values():
            tensor.fill_(value)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in self.values.items():
            self.consumed += 1
            yield name, value

    def optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in self.weights():
            yield f"{name}/moment", value

    def scaler_state(self) -> dict[str, Any]:
        return {}


class Gate:
    """Holds the threads that write, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        original = files.save_file

        def save_file(*arguments: Any) -> None:
            assert self.open.wait(30)
            original(*arguments)

        monkeypatch.setattr(files, "save_file", save_file)


@pytest.fixture(params=[True, False], ids=["beside", "waiting"])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Saver:
    return make(tmp_path, asynchronous=request.param)


def make(folder: Path, **config: Any) -> Saver:
    said: list[str] = []
    made = Saver(
        CheckpointStore(folder),
        Weights(),  # type: ignore[arg-type]
        CheckpointConfig(**config),
        said.append,
    )
    made.said = said  # type: ignore[attr-defined]
    return made


def save(saver: Saver, step: int) -> None:
    """Saves and waits."""
    saver.save(TrainState(step=step), "")
    saver.finish()


def crash(saver: Saver, error: BaseException) -> None:
    """Ends a training while it saves."""
    with saver.attended():
        saver.save(TrainState(step=1), "")
        raise error


def saved_value(saver: Saver, step: int) -> float:
    snapshot = read_snapshot(saver.store.path(step))
    values = torch.cat(
        [v.flatten() for m in (snapshot.weights, snapshot.optimizer) for v in m.values()]
    )
    assert snapshot.state.step == step
    assert len(values) == 2200
    assert values.min() == values.max()
    return float(values[0])


def hidden(saver: Saver) -> list[str]:
    return [path.name for path in saver.store.run_dir.glob(".step*")]


def test_a_snapshot_is_that_of_its_moment(saver, monkeypatch):
    gate, state = Gate(monkeypatch), TrainState()
    if not saver.config.asynchronous:
        gate.open.set()
    for step in (1, 2, 3):
        state.step = step
        saver.engine.set(step)
        saver.save(state, "")
        saver.engine.set(-1)
        state.step = -1
        gate.open.set()
        assert not saver.failed
    saver.finish()
    assert saver.store.steps() == [2, 3]
    assert [saved_value(saver, step) for step in (2, 3)] == [2.0, 3.0]
    assert [line.split(" in ")[0] for line in saver.said] == [
        f"step {step}: saved {saver.store.path(step)}" for step in (1, 2, 3)
    ]
    assert hidden(saver) == []


def test_both_ways_write_the_same_files(tmp_path):
    torch.manual_seed(0)
    written = []
    for asynchronous in (True, False):
        saver = make(tmp_path / str(asynchronous), asynchronous=asynchronous)
        saver.save(TrainState(step=1), "config")
        saver.finish()
        folder = saver.store.path(1)
        written.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert written[0] == written[1]
    assert set(written[0]) == {
        "config.yaml",
        "manifest.json",
        "model-00001.safetensors",
        "optimizer-00001.safetensors",
        "rng-00000.safetensors",
        "state.json",
    }


def test_a_second_save_waits_for_the_first(tmp_path, monkeypatch):
    saver, gate = make(tmp_path), Gate(monkeypatch)
    assert saver.save(TrainState(step=1), "") < 5
    assert saver.store.steps() == []
    threading.Timer(0.3, gate.open.set).start()
    assert saver.save(TrainState(step=2), "") > 0.2
    assert saver.store.latest() == saver.store.path(1)
    saver.finish()
    assert saver.store.steps() == [1, 2]


@pytest.mark.parametrize("call", range(1, 4))
def test_a_failure_is_known_at_once_and_told(saver, monkeypatch, call):
    """Of any file: the checkpoint before stays, and nothing of the new one does."""
    saver.save(TrainState(step=1), "")
    saver.finish()
    original, calls = files.save_file, iter(range(1, 100))

    def save_file(*arguments: Any) -> None:
        if next(calls) == call:
            raise FULL
        original(*arguments)

    monkeypatch.setattr(files, "save_file", save_file)
    saver.engine.consumed = 0
    with pytest.raises(UserError, match="could not be written: the disk is full"):
        save(saver, 2)
    assert saver.engine.consumed == 4  # the others were not left alone in a collective
    assert not saver.failed
    assert saver.store.latest() == saver.store.path(1)
    assert hidden(saver) == []


def test_a_failure_is_known_without_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "save_file", lambda *_: (_ for _ in ()).throw(FULL))
    saver = make(tmp_path)
    saver.save(TrainState(step=1), "")
    until(lambda: saver.failed)
    with pytest.raises(UserError, match="the disk is full"):
        saver.finish()


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_no_memory_for_the_copy(saver, monkeypatch):
    original = torch.Tensor.to

    def to(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if tensor.shape == (10, 10):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        return original(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    with pytest.raises(UserError, match=r"checkpoint\.asynchronous"):
        save(saver, 1)
    assert saver.engine.consumed == 4
    assert hidden(saver) == []


def test_a_bug_in_the_thread_is_raised_as_it_is(saver, monkeypatch):
    monkeypatch.setattr(CheckpointStore, "commit", lambda *_: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        save(saver, 1)


def test_a_tensor_that_nobody_has_written_is_missed(saver, monkeypatch):
    from lsp.checkpointing.snapshot import Contents

    original = Contents.parts

    def parts(contents: Contents) -> Any:
        for name, write in original(contents):
            if not name.startswith("optimizer"):
                yield name, write

    monkeypatch.setattr(Contents, "parts", parts)
    with pytest.raises(RuntimeError, match="holds 2 tensors of"):
        save(saver, 1)
    assert saver.store.steps() == []


def test_a_file_that_others_do_not_see_is_missed(saver, monkeypatch):
    """As where hosts have folders of the same name that are not the same."""
    original = files.hand_over

    def hand_over(folder: Path, rank: int, records: Any) -> None:
        original(folder, rank, records | {"model-00002.safetensors": {}})

    monkeypatch.setattr("lsp.checkpointing.background.hand_over", hand_over)
    with pytest.raises(UserError, match=r"model-00002\.safetensors is gone; all processes have to"):
        save(saver, 1)
    assert saver.store.steps() == []
    assert hidden(saver) == []


class CrashError(Exception):
    """What a training ends with."""


def test_a_crash_gives_the_snapshot_under_way_a_chance(tmp_path, monkeypatch):
    saver, gate = make(tmp_path), Gate(monkeypatch)
    threading.Timer(0.2, gate.open.set).start()
    with pytest.raises(CrashError):
        crash(saver, CrashError())
    assert saver.store.latest() == saver.store.path(1)


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
def test_who_wants_to_leave_at_once_does(tmp_path, monkeypatch, leaving):
    saver, gate = make(tmp_path), Gate(monkeypatch)
    began = time.monotonic()
    with pytest.raises(leaving):
        crash(saver, leaving())
    assert time.monotonic() - began < 5
    gate.open.set()
    until(lambda: not any(thread.name == "checkpoint" for thread in threading.enumerate()))
    assert saver.store.steps() == []


def test_a_collective_that_fails_ends_the_save_at_once(saver, monkeypatch):
    def lost() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(1)
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(saver.engine, "weights", lost)
    monkeypatch.setattr(saver.engine, "optimizer_state", lost)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="connection closed"):
        crash(saver, CrashError())
    assert time.monotonic() - began < 5
    assert saver.store.steps() == []


def test_who_insists_while_a_save_is_waited_for_leaves(tmp_path, monkeypatch):
    saver, gate = make(tmp_path), Gate(monkeypatch)

    def insist(seconds: float | None = None) -> None:
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        finish_with(saver, insist)
    gate.open.set()
    until(lambda: not any(thread.name == "checkpoint" for thread in threading.enumerate()))
    assert saver.store.steps() == []


def finish_with(saver: Saver, wait: Any) -> None:
    with saver.attended():
        saver.save(TrainState(step=1), "")
        saver._writing.wait_files = wait  # a signal's handler raises wherever it is
        saver.finish()


def test_a_crash_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(saver_module, "OWN_SECONDS", 0.05)
    saver, gate = make(tmp_path), Gate(monkeypatch)
    with pytest.raises(CrashError):
        crash(saver, CrashError())
    gate.open.set()
    until(lambda: not any(thread.name == "checkpoint" for thread in threading.enumerate()))
    assert saver.store.steps() == []


def test_a_disk_that_both_find_full_is_told_by_the_snapshot(tmp_path, monkeypatch):
    """Whoever writes first meets it, for example the metrics of the next step."""

    def save_file(*_: Any) -> None:
        raise FULL

    monkeypatch.setattr(files, "save_file", save_file)
    saver = make(tmp_path)
    with pytest.raises(UserError, match="the checkpoint could not be written: the disk is full"):
        crash(saver, FULL)
    assert hidden(saver) == []
    with pytest.raises(CrashError):
        crash(saver, CrashError())
    assert "the disk is full" in saver.said[-1]


def save_for_ever(folder: Path, first: int) -> None:
    """A training that saves after every step, and notes what it was told is saved."""
    saver = make(folder)
    with (folder / "told").open("a", buffering=1) as told:
        saver.say = lambda message: print(message.split()[1].rstrip(":"), file=told)
        saver.store.clean()
        for step in range(first, 10**6):
            saver.engine.set(step)
            saver.save(TrainState(step=step), "")


def test_killed_at_any_moment(tmp_path):
    """No kill leaves a damaged checkpoint, or takes away one that was told to be there."""
    generator, step = random.Random(0), 0
    damage: list[str] = []
    store = CheckpointStore(tmp_path, warn=damage.append)
    for _ in range(12):
        process = forkserver().Process(target=save_for_ever, args=(tmp_path, step + 1))
        process.start()
        until(lambda: (store.steps() or [0])[-1] > step)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        process.join()
        newest = store.latest()
        told = int((tmp_path / "told").read_text().split()[-1])
        step = store.step_of(newest)
        assert damage == []
        assert step >= told
        assert saved_value(make(tmp_path), step) == step
