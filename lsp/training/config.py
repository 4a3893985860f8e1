"""What the user may say about the loop, the optimizer and the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lsp.core.errors import require, unknown_choice

ORDERS = ("auto", "shuffled", "contiguous")
SCHEDULES = ("cosine", "linear", "constant", "warmup_stable_decay")


@dataclass
class TrainerConfig:
    """The loop.

    Attributes:
        max_steps: Optimizer steps of the run.
        order: Of the rows: `shuffled`, new in every epoch, or `contiguous`, where each row of a
            step goes on, in the next step, where it ended, so that a model which remembers has
            its memory of the text before. That needs packing=concatenate; each row of a step is
            then a lane through its own part of the data, and memory ends with the epoch. `auto` is
            contiguous for architectures that remember.
        micro_batch: Rows in one forward pass of one process; 0 chooses the largest divisor of
            its share that stays below `micro_batch_tokens`.
        micro_batch_tokens: Bound for the choice above.
        log_every: Steps between logged rows.
        eval_every: Steps between evaluations; 0 evaluates only at the end.
        eval_rows: Validation rows used each time; 0 uses all.
        gradient_clip: Largest global gradient norm; 0 does not clip.
        max_nonfinite: Steps with a non-finite loss or gradient in a row after which the run
            stops.
        drift_every: Steps between measurements of how far a reversible backward pass lands
            from the true inputs; 0 never.
        drift_warning: Relative drift above which the run says so.
        sample_tokens: Length of the sample printed at the end; 0 for none.
        dry_run: Whether a micro-batch is computed before the first step and thrown away, so that
            memory that does not suffice is met at once. It changes nothing about what is trained.
        peak_tflops: Peak of the device for model FLOPs utilisation; 0 looks it up, and leaves
            the utilisation out where the device is not known.
    """

    max_steps: int = 1000
    order: str = "auto"
    micro_batch: int = 0
    micro_batch_tokens: int = 16384
    log_every: int = 10
    eval_every: int = 100
    eval_rows: int = 64
    gradient_clip: float = 1.0
    max_nonfinite: int = 10
    drift_every: int = 100
    drift_warning: float = 1e-3
    sample_tokens: int = 200
    dry_run: bool = True
    peak_tflops: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise unknown_choice("trainer.order", self.order, ORDERS)
        require(self.max_steps > 0, f"trainer.max_steps={self.max_steps} must be 1 or more")
        require(self.log_every > 0, f"trainer.log_every={self.log_every} must be 1 or more")
        require(
            self.micro_batch_tokens > 0,
            f"trainer.micro_batch_tokens={self.micro_batch_tokens} must be 1 or more",
        )
        require(
            self.max_nonfinite > 0, f"trainer.max_nonfinite={self.max_nonfinite} must be 1 or more"
        )
        for key in (
            "micro_batch",
            "eval_every",
            "eval_rows",
            "gradient_clip",
            "drift_every",
            "drift_warning",
            "sample_tokens",
            "peak_tflops",
        ):
            value = getattr(self, key)
            require(value >= 0, f"trainer.{key}={value} must be 0 or more")

    def contiguous(self, remembers: bool) -> bool:
        """Whether rows are read in the order of the text, given whether the model remembers."""
        return remembers and self.order != "shuffled"


@dataclass
class PhaseConfig:
    """A part of a run with rows and windows of its own (2004.05150, section 4.2).

    Attributes:
        steps: Optimizer steps of the phase; can be changed until it is over, and phases added.
        sequence_length: Tokens in a row.
        attention_window: Of the Longformer: a number, or one for each layer; null leaves the
            architecture's.
        tokens_per_step: Tokens in a step; null leaves the run's.
        learning_rate: Factor of the optimizer's; the schedule takes its course in each phase.
        warmup_steps: Of the schedule in this phase; null leaves the schedule's.
    """

    steps: int = 0
    sequence_length: int = 0
    attention_window: Any = None
    tokens_per_step: int | None = None
    learning_rate: float = 1.0
    warmup_steps: int | None = None

    def check(self, where: str) -> None:
        """Refuses values that cannot work; `where` names the phase."""
        for key in ("steps", "sequence_length"):
            value = getattr(self, key)
            require(value > 0, f"{where}.{key}={value} must be given, and 1 or more")
        tokens, warmup, window = self.tokens_per_step, self.warmup_steps, self.attention_window
        require(tokens is None or tokens > 0, f"{where}.tokens_per_step={tokens} must be 1 or more")
        require(warmup is None or warmup >= 0, f"{where}.warmup_steps={warmup} must be 0 or more")
        require(
            self.learning_rate > 0,
            f"{where}.learning_rate={self.learning_rate} must be positive: it is a factor of "
            "optimizer.learning_rate, e.g. 0.5",
        )
        windows = window if isinstance(window, list) and window else [window]
        require(
            window is None or all(type(one) is int for one in windows),
            f"{where}.attention_window={window} must be a whole number, or a list of one for each "
            "layer",
        )


@dataclass
class WatchdogConfig:
    """What happens to a run that hangs.

    Attributes:
        seconds: How long a process may take from one thing that it says it does to the next (a
            micro-batch, a batch of an evaluation, a step, a checkpoint) before all tell where they
            stand and exit with 76, upon which launchers start again; 0 never. Longer than the
            slowest micro-batch, and shorter than `parallelism.timeout_seconds`, after which the
            processes that wait lose patience and with it the chance to tell. One process alone is
            not stalled while it computes.
    """

    seconds: float = 1800.0

    def __post_init__(self) -> None:
        require(self.seconds >= 0, f"watchdog.seconds={self.seconds} must be 0 (never) or more")


@dataclass
class OptimizerConfig:
    """Fields that every optimizer has.

    Attributes:
        learning_rate: Peak of the schedule.
        weight_decay: Decoupled weight decay, on matrices only (not on norms and biases).
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        require(
            self.learning_rate > 0,
            f"optimizer.learning_rate={self.learning_rate} must be positive, e.g. 1e-3",
        )
        require(
            self.weight_decay >= 0,
            f"optimizer.weight_decay={self.weight_decay} must be 0 or more",
        )


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (1711.05101)."""

    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("beta1", "beta2"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optimizer.{key}={value} must be in [0, 1), e.g. 0.9")
        require(self.epsilon > 0, f"optimizer.epsilon={self.epsilon} must be positive, e.g. 1e-8")


@dataclass
class AdafactorConfig(OptimizerConfig):
    """Adafactor (1804.04235), torch's own: the second moment is kept by row and column."""

    learning_rate: float = 1e-2
    beta2_decay: float = -0.8
    clip_threshold: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.beta2_decay <= 0,
            f"optimizer.beta2_decay={self.beta2_decay} must be 0 or less, e.g. -0.8",
        )
        require(
            self.clip_threshold > 0,
            f"optimizer.clip_threshold={self.clip_threshold} must be positive, e.g. 1.0",
        )


@dataclass
class MuonConfig(OptimizerConfig):
    """Muon, torch's own, for the weight matrices of the layers; AdamW for everything else.

    Attributes:
        momentum: Momentum of the orthogonalised update.
        ns_steps: Newton-Schulz iterations.
        adamw_learning_rate: Peak learning rate of the embeddings, head, norms and biases.
    """

    learning_rate: float = 2e-2
    momentum: float = 0.95
    ns_steps: int = 5
    adamw_learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.adamw_learning_rate > 0,
            f"optimizer.adamw_learning_rate={self.adamw_learning_rate} must be positive, e.g. 1e-3",
        )
        for key in ("momentum", "beta1", "beta2"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optimizer.{key}={value} must be in [0, 1), e.g. 0.95")
        require(self.ns_steps > 0, f"optimizer.ns_steps={self.ns_steps} must be 1 or more, e.g. 5")


@dataclass
class ScheduleConfig:
    """Learning rate over the run: a linear warmup, then one of four shapes.

    Attributes:
        name: `cosine` and `linear` fall to `final_fraction` at `trainer.max_steps`, `constant`
            stays, `warmup_stable_decay` (2404.06395, section 4) stays and falls linearly over
            the last `decay_steps`.
        warmup_steps: Steps of the warmup.
        decay_steps: Steps of the decay of `warmup_stable_decay`; 0 takes a tenth of the run.
        final_fraction: Last learning rate, as a fraction of the peak.
    """

    name: str = "cosine"
    warmup_steps: int = 100
    decay_steps: int = 0
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise unknown_choice("schedule.name", self.name, SCHEDULES)
        for key in ("warmup_steps", "decay_steps"):
            value = getattr(self, key)
            require(value >= 0, f"schedule.{key}={value} must be 0 or more")
        require(
            0 <= self.final_fraction <= 1,
            f"schedule.final_fraction={self.final_fraction} must be between 0 and 1, e.g. 0.1",
        )
