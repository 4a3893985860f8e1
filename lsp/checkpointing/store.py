"""The checkpoints of one run: which there are, which is newest and whole, which are kept."""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lsp.checkpointing.config import CheckpointConfig
from lsp.checkpointing.files import (
    IncompleteError,
    publish,
    read_tensors,
    remove,
    seal,
    verify,
    write_json,
    write_text,
)
from lsp.core.errors import UserError

STATE = "state.json"
_NAME = re.compile(r"^step-(\d{8,})$")


def _warn(message: str) -> None:
    print(f"lsp: {message}", file=sys.stderr, flush=True)


class CheckpointStore:
    """Folders `step-00000100/` of a run, each whole or not there.

    Args:
        run_dir: Folder of the run.
        warn: Receives a line when a damaged checkpoint is passed over.
    """

    def __init__(self, run_dir: Path, warn: Callable[[str], None] = _warn) -> None:
        self.run_dir = run_dir
        self.warn = warn

    def path(self, step: int) -> Path:
        return self.run_dir / f"step-{step:08d}"

    def step_of(self, path: Path) -> int:
        """The step of a checkpoint's folder."""
        match = _NAME.match(path.name)
        assert match is not None
        return int(match.group(1))

    def steps(self) -> list[int]:
        """Steps that have a checkpoint under its final name, oldest first."""
        if not self.run_dir.is_dir():
            return []
        matches = (_NAME.match(entry.name) for entry in self.run_dir.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def latest(self) -> Path | None:
        """The newest checkpoint that matches its manifest, or None where the run has none.

        Raises:
            UserError: If there are checkpoints but none is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                verify(self.path(step))
            except IncompleteError as problem:
                if not self.path(step).exists():
                    return self.latest()  # a training under way has put newer ones in its place
                self.warn(f"{self.path(step)} is damaged ({problem}); falling back")
                continue
            return self.path(step)
        if steps:
            raise UserError(
                f"none of the {len(steps)} checkpoint(s) in {self.run_dir} is readable; "
                "restore one from a copy, or choose another run_name to begin again"
            )
        return None

    def find(self, which: str) -> Path:
        """A checkpoint by name: `latest`, `best` or the number of a step.

        Raises:
            UserError: If there is none, naming those there are.
        """
        if which == "latest":
            path = self.latest()
            if path is None:
                raise UserError(f"run={self.run_dir} holds no checkpoint; train it first")
            return path
        steps = self.steps()
        step = self.best_step() if which == "best" else int(which) if which.isdigit() else None
        if step is None or step not in steps:
            known = ", ".join(str(step) for step in steps) or "none"
            raise UserError(
                f"checkpoint={which} is not in {self.run_dir}: choose latest, best or a step "
                f"(there are {known})"
            )
        try:
            verify(self.path(step))
        except IncompleteError as problem:
            if not self.path(step).exists():
                raise UserError(
                    f"{self.path(step)} was deleted while it was read: the training that writes "
                    "there keeps newer ones (checkpoint.keep_last, checkpoint.keep_every)"
                ) from problem
            raise UserError(f"{self.path(step)} is damaged: {problem}") from problem
        return self.path(step)

    def best_step(self) -> int | None:
        """The step with the lowest validation loss among those that are kept.

        Only losses count that were measured on the very weights of the checkpoint.
        """
        losses = {}
        for step in self.steps():
            try:
                state = read_state(self.path(step))
            except UserError:
                continue
            loss = state.get("validation_loss")
            if loss is not None and math.isfinite(loss) and state.get("validation_step") == step:
                losses[step] = loss
        return min(losses, key=lambda step: losses[step]) if losses else None

    def begin(self, step: int) -> Path:
        """An empty folder beside the final one, to be filled and then given to `commit`.

        No two saves share a folder: a process of a session that was given up, on a host that was
        out of reach, must not write into the checkpoint of the session that took its place.
        """
        aside = self.run_dir / f".step-{step:08d}-{secrets.token_hex(4)}.aside"
        aside.mkdir(parents=True)
        return aside

    def commit(self, aside: Path, step: int) -> Path:
        """Seals a filled folder and gives it its final name."""
        seal(aside)
        final = self.path(step)
        publish(aside, final)
        write_text(self.run_dir / "latest", final.name + "\n")
        return final

    def retain(self, config: CheckpointConfig) -> list[int]:
        """Deletes what the policy does not keep; returns the steps that went."""
        steps = self.steps()
        keep = set(steps[-config.keep_last :])
        if config.keep_every:
            keep |= {step for step in steps if step % config.keep_every == 0}
        if config.keep_best:
            best = self.best_step()
            keep |= {best} if best is not None else set()
        gone = [step for step in steps if step not in keep]
        for step in gone:
            remove(self.path(step))
        return gone

    def set_aside_after(self, step: int) -> None:
        """Renames the checkpoints beyond a step, which are those that `latest` found damaged.

        Under their old names they would count as the newest, and `retain` would keep them in the
        place of good ones.
        """
        for damaged in (s for s in self.steps() if s > step):
            away = self.path(damaged).with_suffix(".damaged")
            if away.exists():
                shutil.rmtree(away)
            self.path(damaged).rename(away)
            write_text(self.run_dir / "latest", self.path(step).name + "\n")
            self.warn(f"{self.path(damaged)} is now {away.name}; delete it when it is of no use")

    def clean(self) -> None:
        """Removes what an interrupted save or deletion left behind."""
        for pattern in (".step-*.aside", ".step-*.deleted"):
            for path in self.run_dir.glob(pattern):
                # A process that is being ended may still write there; then it waits for next time.
                shutil.rmtree(path, ignore_errors=True)


class DamagedError(UserError):
    """A checkpoint cannot be read."""


def read_state(step_dir: Path) -> dict[str, Any]:
    """The plain values of a checkpoint: step, cursor, losses, versions.

    Raises:
        DamagedError: If they cannot be read.
    """
    try:
        state: dict[str, Any] = json.loads((step_dir / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{step_dir / STATE} cannot be read: {error}") from error
    return state


def read_weights(step_dir: Path) -> Mapping[str, torch.Tensor]:
    """Weights of a checkpoint by parameter name, fp32, read when they are asked for.

    Raises:
        UserError: If the folder holds none.
    """
    weights = read_tensors(step_dir, "model")
    if not weights:
        raise UserError(f"{step_dir} holds no weights (model-*.safetensors)")
    return weights


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Writes the plain values of a checkpoint."""
    write_json(folder / STATE, state)
