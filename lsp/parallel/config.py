"""What the user may say about processes, sharding and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lsp.core.errors import UserError, require, unknown_choice
from lsp.parallel.memory import BUCKET, GROUP, LIVE, SHARDINGS, Sharding

STRATEGIES = (*SHARDINGS, "auto")
PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class OffloadConfig:
    """What leaves the device, and how, under the strategies that offload (2101.06840, 2104.07857).

    Attributes:
        pin_memory: Whether host memory is page-locked, which makes copies to a GPU fast and keeps
            them off the swap; null does so where there is a GPU.
        weights: Whether `zero3_offload` and `zero3_nvme` keep the sharded weights off the device
            too. False leaves them there, which is faster where they fit.
        nvme_path: Folder on a fast local disk, for `zero3_nvme`.
        buffer_count: Buffers for weights on their way from and to the disk.
        buffer_size: Elements of each; at least those of the largest weight.
        max_in_cpu: Elements of weights that stay in host memory although they could go to disk.
        pipeline_read: Whether the next part of the optimizer state is read during an update.
        pipeline_write: Whether the previous part is written during an update.
        block_size: Bytes of one access to the disk.
        queue_depth: Accesses under way at the same time in one thread.
        intra_op_parallelism: Threads for one request.
        single_submit: Whether accesses are submitted one by one.
        overlap_events: Whether submitting and waiting overlap.
    """

    pin_memory: bool | None = None
    weights: bool = True
    nvme_path: str | None = None
    buffer_count: int = 5
    buffer_size: int = 100_000_000
    max_in_cpu: int = 1_000_000_000
    pipeline_read: bool = False
    pipeline_write: bool = False
    block_size: int = 1_048_576
    queue_depth: int = 8
    intra_op_parallelism: int = 1
    single_submit: bool = False
    overlap_events: bool = True

    def __post_init__(self) -> None:
        for key in (
            "buffer_count",
            "buffer_size",
            "block_size",
            "queue_depth",
            "intra_op_parallelism",
        ):
            _require_positive(f"offload.{key}", getattr(self, key))
        require(
            self.max_in_cpu >= 0,
            f"parallelism.offload.max_in_cpu={self.max_in_cpu} must be 0 or more",
        )


@dataclass
class ParallelismConfig:
    """How processes share the model.

    Attributes:
        strategy: `single` (one process), `ddp` (every process holds the whole model), `zero1`,
            `zero2`, `zero3` (optimizer state, gradients, weights sharded by DeepSpeed; 1910.02054,
            section 5), `zero2_offload`, `zero3_offload` (what they update stays in host memory and
            is updated there), `zero3_nvme` (on disk), or `auto`, which takes the first that fits.
        sequence: Processes that share the positions of the same rows (sequence parallelism:
            DeepSpeed Ulysses, 2309.14509); 1 gives every process whole rows.
        device: `auto` takes the GPU where there is one.
        timeout_seconds: How long a collective may wait before the run is ended; longer than
            `watchdog.seconds`, which tells more.
        reduce_bucket_size: Elements reduced at once (ZeRO).
        allgather_bucket_size: Elements gathered at once (ZeRO-1 and 2).
        overlap_comm: Whether reductions overlap the backward pass.
        contiguous_gradients: Whether gradients are copied to one buffer as they appear.
        reduce_scatter: Whether gradients are reduced to their owner alone (ZeRO-1 and 2).
        communication_dtype: Number format of reductions: `fp32`, `bf16`, `fp16`; null takes that of
            the gradients.
        param_persistence_threshold: Weights with fewer elements stay whole on every process
            (ZeRO-3).
        model_persistence_threshold: Most elements that stay whole by that rule; null for any.
        prefetch_bucket_size: Elements fetched ahead of use (ZeRO-3).
        max_live_parameters: Elements that may be gathered at the same time (ZeRO-3).
        max_reuse_distance: Weights that are used again within so many elements are not let go
            (ZeRO-3).
        sub_group_size: Elements updated at once (ZeRO-3); smaller needs less memory in the step.
        hpz_partition_size: Processes of one machine that keep a second partition of the weights
            among themselves, so that the backward pass gathers within the machine (ZeRO++,
            2306.10209, section 3.2); 1 for none.
        quantized_weights: Whether weights are gathered in 8 bits (ZeRO++); CUDA only.
        quantized_gradients: Whether gradients are reduced in 4 bits (ZeRO++); CUDA only.
        offload: What leaves the device, and how.
        zero: Further keys of DeepSpeed's `zero_optimization`, passed on as they are: typed as
            `+parallelism.zero.KEY=VALUE`.
    """

    strategy: str = "single"
    sequence: int = 1
    device: str = "auto"
    timeout_seconds: int = 3600
    reduce_bucket_size: int = BUCKET
    allgather_bucket_size: int = 50_000_000
    overlap_comm: bool = True
    contiguous_gradients: bool = True
    reduce_scatter: bool = True
    communication_dtype: str | None = None
    param_persistence_threshold: int = 100_000
    model_persistence_threshold: int | None = None
    prefetch_bucket_size: int = 50_000_000
    max_live_parameters: int = LIVE
    max_reuse_distance: int = LIVE
    sub_group_size: int = GROUP
    hpz_partition_size: int = 1
    quantized_weights: bool = False
    quantized_gradients: bool = False
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    zero: dict[str, Any] = field(default_factory=dict)

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
            f"parallelism.timeout_seconds={self.timeout_seconds} must be positive, e.g. 3600",
        )
        for key in (
            "reduce_bucket_size",
            "allgather_bucket_size",
            "sub_group_size",
            "hpz_partition_size",
        ):
            _require_positive(key, getattr(self, key))
        for key in (
            "param_persistence_threshold",
            "model_persistence_threshold",
            "prefetch_bucket_size",
            "max_live_parameters",
            "max_reuse_distance",
        ):
            value = getattr(self, key)
            require(value is None or value >= 0, f"parallelism.{key}={value} must be 0 or more")
        if self.communication_dtype not in (None, *PRECISIONS):
            raise unknown_choice(
                "parallelism.communication_dtype", self.communication_dtype, PRECISIONS
            )
        self._check_fits_strategy()

    def _check_fits_strategy(self) -> None:
        """Refuses settings that the strategy would silently not read."""
        if self.strategy == "auto":
            return
        for key, default in (
            ("hpz_partition_size", 1),
            ("quantized_weights", False),
            ("quantized_gradients", False),
        ):
            value = getattr(self, key)
            require(
                value == default or self.zero_stage == 3,
                f"parallelism.{key}={value} is read only by ZeRO-3, not by "
                f"parallelism={self.strategy}: use parallelism=zero3",
            )
        require(
            not self.zero or self.zero_stage > 0,
            f"parallelism.zero={self.zero} is read only by ZeRO, not by "
            f"parallelism={self.strategy}: use parallelism=zero1, zero2 or zero3",
        )
        require(
            self.strategy != "zero3_nvme" or self.offload.nvme_path is not None,
            "parallelism=zero3_nvme needs a folder on a fast local disk, "
            "e.g. parallelism.offload.nvme_path=/local_nvme",
        )

    @property
    def sharding(self) -> Sharding:
        """What the strategy does; `auto` has to be decided first."""
        sharding = SHARDINGS[self.strategy]
        return sharding if self.offload.weights else replace(sharding, weights="device")

    @property
    def zero_stage(self) -> int:
        """0 where DeepSpeed is not used."""
        return self.sharding.stage if self.strategy != "auto" else 0


def _require_positive(key: str, value: int) -> None:
    require(value > 0, f"parallelism.{key}={value} must be 1 or more")


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
