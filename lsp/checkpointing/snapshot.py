"""What a checkpoint of a training run holds."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from lsp.checkpointing.background import Part
from lsp.checkpointing.files import read_tensors, save_tensors, shards, write_json, write_text
from lsp.checkpointing.memory import LaneMemory, read_memory
from lsp.checkpointing.store import STATE, read_state, read_weights
from lsp.core.errors import UserError
from lsp.core.seeding import rng_state, seed_everything, set_rng_state, stream
from lsp.core.versions import versions
from lsp.parallel.engine import Engine

T = TypeVar("T")

RESTORE_STREAM = 5


@dataclass
class TrainState:
    """Where a run stands.

    Attributes:
        step: Optimizer steps done.
        phase: Number of the phase that the cursor belongs to.
        cursor: Global samples consumed: all that is needed to find the next batch.
        tokens: Tokens consumed, padding included.
        nonfinite: Steps skipped so far because a gradient was not finite.
        nonfinite_in_a_row: How many of those came last, without a good step between.
        validation_loss: Last validation loss in nats per predicted token.
        validation_step: Step whose weights had that loss.
        best_validation_loss: Lowest so far.
        seconds: Training time so far, over all sessions.
        peak_memory_bytes: Largest memory of the main process so far, over all sessions.
        data_fingerprint: Of the prepared data: where to find it.
        data_digest: Of the rows that the cursor counts; it means nothing in others.
        imported_from: Where the first weights came from, if not from random numbers.
        scaler: State of the dynamic loss scale.
        pending: Sums since the last logged row, so that the next row is what it would have
            been without an interruption.
        unlogged: The row of this step where a signal came before it was complete.
        certificate: What the packing certificate found on the model when training began, or last
            went on; None where it was not asked for.
    """

    step: int = 0
    phase: int = 0
    cursor: int = 0
    tokens: int = 0
    nonfinite: int = 0
    nonfinite_in_a_row: int = 0
    validation_loss: float | None = None
    validation_step: int | None = None
    best_validation_loss: float | None = None
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    data_fingerprint: str = ""
    data_digest: str = ""
    imported_from: str | None = None
    scaler: dict[str, Any] = field(default_factory=dict)
    pending: dict[str, float] = field(default_factory=dict)
    unlogged: dict[str, float | int | None] | None = None
    certificate: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        known = cls.__dataclass_fields__
        return cls(**{key: value for key, value in values.items() if key in known})


class Contents:
    """The files that this process adds to a checkpoint.

    Args:
        engine: Whose weights and optimizer state are saved.
        state: Where the run stands.
        config_yaml: The resolved configuration.
        memory: What the model remembers of lanes that no other process saves, if anything.
    """

    def __init__(
        self,
        engine: Engine,
        state: TrainState,
        config_yaml: str,
        memory: LaneMemory | None = None,
    ) -> None:
        self._engine = engine
        self._state = state
        self._config_yaml = config_yaml
        self._memory = memory
        self._streams = {
            "model": self._counted(engine.weights()),
            "optimizer": self._counted(engine.optimizer_state()),
        }
        self._tensors = 0

    def parts(self) -> Iterator[Part]:
        """The files one after the other; every process must iterate to the end.

        They hold copies: what they were made from may change as soon as they are there.
        """
        place = self._engine.runtime
        for stem, tensors in self._streams.items():
            for name, shard in shards(stem, tensors, place.rank, place.world_size):
                yield name, partial(save_tensors, shard)
        yield f"rng-{place.rank:05d}.safetensors", partial(_write_rng, rng_state())
        if self._memory is not None:
            yield self._memory.part(place.rank)
        if place.is_main:
            self._state.scaler = self._engine.scaler_state()
            values = asdict(self._state) | {"world_size": place.world_size}
            yield STATE, partial(_write_state, values)
            yield "config.yaml", partial(_write_text, self._config_yaml)

    def take_part(self) -> None:
        """Takes part in the collectives that are left where this process has failed amid them."""
        for tensors in self._streams.values():
            deque(tensors, maxlen=0)

    def check(self, folder: Path) -> None:
        """Opens what all processes have written: each tensor is there, in one of the files."""
        written = sum(len(read_tensors(folder, stem)) for stem in self._streams)
        if written != self._tensors:
            raise RuntimeError(f"{folder} holds {written} tensors of {self._tensors}")

    def _counted(self, tensors: Iterator[T]) -> Iterator[T]:
        for tensor in tensors:
            self._tensors += 1
            yield tensor


def _write_rng(state: dict[str, Any], path: Path) -> None:
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    plain = {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)}
    save_tensors(tensors, path, {"plain": json.dumps(plain)})


def _write_state(values: dict[str, Any], path: Path) -> None:
    write_json(path, values | {"versions": versions()})


def _write_text(text: str, path: Path) -> None:
    write_text(path, text)


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint whose tensors are read one at a time, when they are asked for."""

    path: Path
    state: TrainState
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]

    def memory(self, lanes: range) -> dict[str, torch.Tensor] | None:
        """What the model remembered of some lanes; None for nothing.

        Raises:
            UserError: There is a memory, but not of all of these lanes.
        """
        return read_memory(self.path, lanes)

    def restore_rng(self, rank: int, seed: int) -> None:
        """Sets the global generators; a process that did not exist then gets its own seed."""
        path = self.path / f"rng-{rank:05d}.safetensors"
        if not path.exists():
            own = stream(seed, RESTORE_STREAM, self.state.step, rank)
            seed_everything(int(own.integers(2**62)))
            return
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            state |= json.loads(file.metadata()["plain"])
        set_rng_state(state)


def read_snapshot(step_dir: Path) -> Snapshot:
    """Reads a checkpoint that `CheckpointStore.latest` or `find` gave.

    Raises:
        UserError: If a file in it cannot be read.
    """
    try:
        return Snapshot(
            path=step_dir,
            state=TrainState.from_dict(read_state(step_dir)),
            weights=read_weights(step_dir),
            optimizer=read_tensors(step_dir, "optimizer"),
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{step_dir} cannot be read: {error}") from error
