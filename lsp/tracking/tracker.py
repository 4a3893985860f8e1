"""The tracker protocol and the JSONL file that every run has."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lsp.tracking.config import TrackingConfig

Metrics = Mapping[str, float | int | None]


class Tracker(Protocol):
    """Receives metrics of a run, on the main process only."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Records the metrics of a step."""
        ...

    def close(self) -> None:
        """Writes out what is still in memory."""
        ...


class JsonlTracker:
    """One row per logged step, floats in full precision.

    Rows beyond the step that a run resumes from are dropped, so that the file is the curve of
    one run, with every step once. What is not a finite number is written as null, which every
    reader of JSON understands.
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        kept = [row for row in read_rows(path) if row["step"] <= resumed_step]
        aside = path.with_name(f".{path.name}.aside")
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Metrics) -> None:
        row = {key: value if _is_finite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _is_finite(value: float | int | None) -> bool:
    return value is not None and math.isfinite(value)


def make_trackers(
    config: TrackingConfig, run_dir: Path, run_config: dict[str, Any], resumed_step: int
) -> list[Tracker]:
    """The trackers of a run: JSONL always, and the one asked for.

    Args:
        config: What was asked for.
        run_dir: Folder of the run; its name is the run's name.
        run_config: The resolved configuration, recorded where the tracker can.
        resumed_step: Step that the run continues from, 0 for a new one.
    """
    trackers: list[Tracker] = [JsonlTracker(run_dir / "metrics.jsonl", resumed_step)]
    if config.name == "wandb":
        from lsp.tracking.wandb_tracker import WandbTracker

        trackers.append(WandbTracker(config, run_dir, run_config))
    elif config.name == "tensorboard":
        from lsp.tracking.tensorboard_tracker import TensorBoardTracker

        trackers.append(TensorBoardTracker(run_dir, resumed_step))
    return trackers
