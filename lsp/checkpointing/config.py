"""When checkpoints are written and which are kept."""

from __future__ import annotations

from dataclasses import dataclass

from lsp.core.errors import require, unknown_choice

RESUME = ("auto", "never", "must")


@dataclass
class CheckpointConfig:
    """Where checkpoints go and how long they live.

    Attributes:
        root: Folder of runs; a run is `<root>/<run_name>/`.
        every: Steps between checkpoints; 0 writes one only at the end.
        asynchronous: Whether training goes on while a checkpoint is written. It needs host memory
            for a copy of the weights and the optimizer state, which the processes share out; with
            `false`, each copies and writes a few gigabytes at a time while training waits.
        keep_last: How many of the newest are kept.
        keep_every: Steps whose multiples are kept for good; 0 for none.
        keep_best: Whether the one with the lowest validation loss is kept, among those of steps
            that were also evaluated.
        resume: `auto` resumes where there is a checkpoint, `must` refuses to start without
            one, `never` refuses to touch a run that has one.
    """

    root: str = "checkpoints"
    every: int = 100
    asynchronous: bool = True
    keep_last: int = 2
    keep_every: int = 0
    keep_best: bool = True
    resume: str = "auto"

    def __post_init__(self) -> None:
        if self.resume not in RESUME:
            raise unknown_choice("checkpoint.resume", self.resume, RESUME)
        require(self.every >= 0, f"checkpoint.every={self.every} must be 0 or more, e.g. 100")
        require(self.keep_last >= 1, f"checkpoint.keep_last={self.keep_last} must be 1 or more")
        require(
            self.keep_every >= 0,
            f"checkpoint.keep_every={self.keep_every} must be 0 (none) or a number of steps",
        )
        require(bool(self.root.strip()), "checkpoint.root is empty; name a folder")
