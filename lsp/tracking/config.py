"""Where metrics go beside the JSONL file."""

from __future__ import annotations

from dataclasses import dataclass

from lsp.core.errors import unknown_choice

TRACKERS = ("jsonl", "wandb", "tensorboard")


@dataclass
class TrackingConfig:
    """Metrics always go to `metrics.jsonl`; this adds one more place.

    Attributes:
        name: `jsonl` (nothing more), `wandb` or `tensorboard`.
        project: Project of the wandb run.
        mode: `auto` is online when logged in to wandb and offline otherwise; or `online`,
            `offline`.
    """

    name: str = "jsonl"
    project: str = "lsp"
    mode: str = "auto"

    def __post_init__(self) -> None:
        if self.name not in TRACKERS:
            raise unknown_choice("tracking.name", self.name, TRACKERS)
        if self.mode not in ("auto", "online", "offline"):
            raise unknown_choice("tracking.mode", self.mode, ("auto", "online", "offline"))
