"""Metrics to Weights & Biases: online when logged in, offline otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import wandb

from lsp.core.errors import UserError
from lsp.tracking.config import TrackingConfig
from lsp.tracking.tracker import Metrics

ID_FILE = "wandb_id"


class WandbTracker:
    """A wandb run that continues under the same id when the run resumes.

    Raises:
        UserError: If wandb refuses to start, for example because nobody is logged in.
    """

    def __init__(self, config: TrackingConfig, run_dir: Path, run_config: dict[str, Any]) -> None:
        mode = config.mode if config.mode != "auto" else _automatic_mode()
        try:
            self.run = wandb.init(
                project=config.project,
                name=run_dir.name,
                id=_run_id(run_dir),
                # Offline there is no server to ask whether the id is known.
                resume=None if mode == "offline" else "allow",
                dir=str(run_dir),
                config=run_config,
                mode=mode,  # type: ignore[arg-type]
            )
        except wandb.Error as error:
            raise UserError(
                f"tracking.mode={config.mode}: wandb cannot start ({' '.join(str(error).split())})."
                " Run 'wandb login', or use tracking.mode=offline"
            ) from error

    def log(self, step: int, metrics: Metrics) -> None:
        self.run.log({k: v for k, v in metrics.items() if v is not None}, step=step)

    def close(self) -> None:
        self.run.finish()


def _run_id(run_dir: Path) -> str:
    """The id that this folder's run has had from its first start, wherever the folder moves."""
    path = run_dir / ID_FILE
    if not path.exists():
        path.write_text(os.urandom(6).hex() + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _automatic_mode() -> str:
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    return "online" if wandb.api.api_key else "offline"
