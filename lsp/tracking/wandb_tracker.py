"""Metrics to Weights & Biases: online when logged in, offline otherwise."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import wandb

from lsp.tracking.config import TrackingConfig
from lsp.tracking.tracker import Metrics


class WandbTracker:
    """A wandb run that continues under the same id when the run resumes."""

    def __init__(self, config: TrackingConfig, run_dir: Path, run_config: dict[str, Any]) -> None:
        mode = config.mode if config.mode != "auto" else _automatic_mode()
        # The folder names the run, so the same folder always continues the same wandb run.
        run_id = hashlib.blake2b(str(run_dir.resolve()).encode(), digest_size=6).hexdigest()
        self.run = wandb.init(
            project=config.project,
            name=run_dir.name,
            id=run_id,
            resume="allow",
            dir=str(run_dir),
            config=run_config,
            mode=mode,  # type: ignore[arg-type]
        )

    def log(self, step: int, metrics: Metrics) -> None:
        self.run.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def close(self) -> None:
        self.run.finish()


def _automatic_mode() -> str:
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    return "online" if wandb.api.api_key else "offline"
