"""What a person sees while a run trains: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingConsole:
    """Writes to stderr, on the main process only."""

    def __init__(self, max_steps: int, first_step: int, *, enabled: bool) -> None:
        self.max_steps = max_steps
        self.enabled = enabled
        self._progress: Progress | None = None
        if enabled and sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._progress.add_task(
                "training", total=max_steps, completed=first_step, status=""
            )

    def start(self) -> None:
        """Shows the bar, once nothing can be refused any more."""
        if self._progress is not None:
            self._progress.start()

    def say(self, message: str) -> None:
        """A line of its own, above the bar where there is one."""
        if not self.enabled:
            return
        if self._progress is not None:
            self._progress.console.print(message, highlight=False, markup=False)
        else:
            print(message, file=sys.stderr, flush=True)

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def metrics(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        """The figures of a logged step: in the bar, or as a line."""
        status = _summary(metrics)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, status=status)
        else:
            self.say(f"step {step}/{self.max_steps}  {status}")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _summary(metrics: Mapping[str, float | int | None]) -> str:
    shown = (
        ("loss", "loss {:.4f}"),
        ("bits_per_byte", "{:.3f} bits/byte"),
        ("learning_rate", "lr {:.2e}"),
        ("gradient_norm", "grad {:.3f}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
        ("model_flops_utilisation", "MFU {:.0%}"),
    )
    parts = [text.format(metrics[key]) for key, text in shown if metrics.get(key) is not None]
    return "  ".join(parts)
