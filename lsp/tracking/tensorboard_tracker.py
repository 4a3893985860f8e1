"""Metrics to TensorBoard's event files."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lsp.tracking.tracker import Metrics


class TensorBoardTracker:
    """Event files in `<run>/tensorboard`; points after the resumed step are purged."""

    def __init__(self, run_dir: Path, resumed_step: int) -> None:
        # Also a new run may follow one that was killed before its first checkpoint.
        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resumed_step + 1)

    def log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if value is not None:
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()
