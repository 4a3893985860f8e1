"""What a checkpoint of a training run holds, written and read by all processes together."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lsp.checkpointing.files import read_tensors, save_tensors, write_tensors, write_text
from lsp.checkpointing.store import CheckpointStore, read_state, read_weights, write_state
from lsp.core.errors import UserError
from lsp.core.seeding import rng_state, seed_everything, set_rng_state, stream
from lsp.core.versions import versions
from lsp.parallel.collectives import rank, together
from lsp.parallel.engine import Engine

RESTORE_STREAM = 5


@dataclass
class TrainState:
    """Where a run stands.

    Attributes:
        step: Optimizer steps done.
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
    """

    step: int = 0
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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        known = cls.__dataclass_fields__
        return cls(**{key: value for key, value in values.items() if key in known})


def save_snapshot(
    store: CheckpointStore, engine: Engine, state: TrainState, config_yaml: str
) -> Path:
    """Writes a checkpoint; every process must call it.

    Args:
        store: Of the run.
        engine: Whose weights and optimizer state are saved.
        state: Where the run stands.
        config_yaml: The resolved configuration.

    Returns:
        The folder, complete.

    Raises:
        UserError: If it could not be written, for example because the disk is full. The
            checkpoints before it are untouched.
    """
    main = engine.runtime.is_main
    # The collectives inside must run on every process even if writing failed on this one, so
    # a failure is carried along and raised at the end.
    writer = _Writer()
    aside = store.run_dir / f".step-{state.step:08d}.aside"
    if main:
        writer.attempt(lambda: store.begin(state.step))
    writer.agree(store)
    _write_streamed(writer, aside, "model", engine.weights(), main)
    _write_streamed(writer, aside, "optimizer", engine.optimizer_state(), main)
    writer.attempt(lambda: _write_rng(aside, engine.runtime.rank))
    writer.agree(store)
    if main:
        state.scaler = engine.scaler_state()
        values = asdict(state) | {
            "world_size": engine.runtime.world_size,
            "versions": versions(),
        }
        writer.attempt(lambda: write_state(aside, values))
        writer.attempt(lambda: write_text(aside / "config.yaml", config_yaml))
        writer.attempt(lambda: store.commit(aside, state.step))
    writer.agree(store)
    return store.path(state.step)


class _Writer:
    """Runs file operations, keeps the first failure, and lets all processes agree on it."""

    def __init__(self) -> None:
        self.error: OSError | SafetensorError | None = None

    def attempt(self, work: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            work()
        except (OSError, SafetensorError) as error:
            self.error = error

    def agree(self, store: CheckpointStore) -> None:
        """Ends every process if any failed, after clearing away the unfinished folder."""
        try:
            together(self._complain)
        except (UserError, SystemExit):
            if rank() == 0:
                with suppress(OSError):
                    store.clean()
            raise

    def _complain(self) -> None:
        if self.error is not None:
            raise UserError(_explain(self.error)) from self.error


def _explain(error: OSError | SafetensorError) -> str:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full" if full else " ".join(str(error).split())
    return (
        f"the checkpoint could not be written: {reason}. Earlier checkpoints are untouched: "
        "make room or set checkpoint.root elsewhere, then run the same command again"
    )


def _write_streamed(writer: _Writer, folder: Path, stem: str, tensors: Any, main: bool) -> None:
    write = main and writer.error is None
    iterator = iter(tensors)
    writer.attempt(lambda: write_tensors(folder, stem, iterator, write=write))
    for _ in iterator:  # a failed writer still takes part in the collectives that are left
        pass


def _write_rng(folder: Path, rank: int) -> None:
    state = rng_state()
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    plain = {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)}
    save_tensors(tensors, folder / f"rng-{rank:05d}.safetensors", {"plain": json.dumps(plain)})


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint, read into host memory."""

    path: Path
    state: TrainState
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]

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
