"""What the user may say about processes, sharding and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from lsp.core.errors import UserError, require, unknown_choice

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3")
PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class ParallelismConfig:
    """How processes share the model.

    Attributes:
        strategy: `single` (one process), `ddp` (every process holds the whole model) or
            `zero1`, `zero2`, `zero3` (optimizer state, gradients, weights sharded by DeepSpeed;
            1910.02054, section 5).
        sequence: Processes that share the positions of the same rows (sequence parallelism:
            DeepSpeed Ulysses, 2309.14509); 1 gives every process whole rows.
        device: `auto` takes the GPU where there is one.
        timeout_seconds: How long a collective may wait before the run is ended.
        reduce_bucket_size: Elements reduced at once (ZeRO).
        allgather_bucket_size: Elements gathered at once (ZeRO-1 and 2).
        overlap_comm: Whether reductions overlap the backward pass.
        param_persistence_threshold: Weights with fewer elements stay whole on every process
            (ZeRO-3).
        prefetch_bucket_size: Elements fetched ahead of use (ZeRO-3).
        max_live_parameters: Elements that may be gathered at the same time (ZeRO-3).
    """

    strategy: str = "single"
    sequence: int = 1
    device: str = "auto"
    timeout_seconds: int = 1800
    reduce_bucket_size: int = 50_000_000
    allgather_bucket_size: int = 50_000_000
    overlap_comm: bool = True
    param_persistence_threshold: int = 100_000
    prefetch_bucket_size: int = 50_000_000
    max_live_parameters: int = 1_000_000_000

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise unknown_choice("parallelism.strategy", self.strategy, STRATEGIES)
        if self.device not in DEVICES:
            raise unknown_choice("parallelism.device", self.device, DEVICES)
        require(
            self.sequence >= 1,
            f"parallelism.sequence={self.sequence} must be 1 (whole rows) or a number of processes",
        )
        require(
            self.timeout_seconds > 0,
            f"parallelism.timeout_seconds={self.timeout_seconds} must be positive, e.g. 1800",
        )

    @property
    def zero_stage(self) -> int:
        """0 where DeepSpeed is not used."""
        return int(self.strategy[-1]) if self.strategy.startswith("zero") else 0


@dataclass
class PrecisionConfig:
    """Number format of the matrix products; weights and optimizer state stay in fp32.

    Attributes:
        name: `fp32`, `bf16` or `fp16` (GPU only, with dynamic loss scaling).
        initial_loss_scale: First loss scale of `fp16`.
    """

    name: str = "fp32"
    initial_loss_scale: float = 65536.0

    def __post_init__(self) -> None:
        if self.name not in PRECISIONS:
            raise unknown_choice("precision.name", self.name, PRECISIONS)
        if self.initial_loss_scale <= 0:
            raise UserError(
                f"precision.initial_loss_scale={self.initial_loss_scale} must be positive, "
                "e.g. 65536"
            )
