"""The learning rate as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from lsp.training.config import ScheduleConfig


def learning_rate_fraction(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """Fraction of the peak learning rate.

    Args:
        step: Optimizer steps done before this one (0 for the first).
        config: The schedule.
        max_steps: Steps of the run.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    floor = config.final_fraction
    if config.name == "constant":
        return 1.0
    if config.name == "warmup_stable_decay":
        # The last stable step is where the decay sets out, so that it takes `decay` steps.
        decay = config.decay_steps or max(1, max_steps // 10)
        return 1.0 - (1.0 - floor) * _progress(step, max_steps - decay - 1, max_steps)
    progress = _progress(step, config.warmup_steps, max_steps)
    if config.name == "linear":
        return 1.0 - (1.0 - floor) * progress
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _progress(step: int, start: int, end: int) -> float:
    """How far `step` is from `start` (0) to the last step before `end` (1)."""
    return min(1.0, max(0.0, (step - start) / max(1, end - 1 - start)))
