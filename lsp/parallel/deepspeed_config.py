"""The one place where a DeepSpeed dict is made."""

from __future__ import annotations

from typing import Any

from lsp.core.errors import require
from lsp.parallel.config import ParallelismConfig, PrecisionConfig


def zero_stage(parallelism: ParallelismConfig, precision: PrecisionConfig) -> int:
    """The stage that DeepSpeed is told.

    For ZeRO-1 in bf16 with gradients added up in fp32 it has an optimizer apart, which fails on
    non-finite gradients where the others skip. Stage 2 computes the same, and holds less.
    """
    if precision.name == "bf16":
        return max(2, parallelism.zero_stage)
    return parallelism.zero_stage


def deepspeed_config(
    parallelism: ParallelismConfig,
    precision: PrecisionConfig,
    *,
    micro_batch: int,
    world_size: int,
    gradient_clip: float,
    pin_memory: bool = False,
) -> dict[str, Any]:
    """DeepSpeed's config for a ZeRO strategy.

    Every value that DeepSpeed or accelerate would fill in silently is given here. Accumulation
    is 1 because the engine is told about accumulation boundaries step by step.

    Args:
        parallelism: Strategy and its sizes.
        precision: Number format of the matrix products.
        micro_batch: Rows of one forward pass.
        world_size: Number of processes.
        gradient_clip: Largest gradient norm, 0 for none.
        pin_memory: Whether host memory is page-locked, where `parallelism.offload` leaves it open.

    Raises:
        UserError: `parallelism.zero` names a key that is set here.
    """
    zero = _zero(parallelism, precision, pin=pin_memory)
    for key in parallelism.zero:
        require(
            key not in zero,
            f"parallelism.zero.{key} would replace what another key of parallelism sets: leave "
            "it out, and see lsp train --help for that key",
        )
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "train_batch_size": micro_batch * world_size,
        "gradient_clipping": gradient_clip,
        "zero_optimization": zero | parallelism.zero,
        # torch's AdamW builds nothing at run time; DeepSpeed calls it untested all the same. The
        # CPU optimizer is made by `offload.py`, with torch's settings instead of its own.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if precision.name == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif precision.name == "fp16":
        scale_power = max(0, round(precision.initial_loss_scale).bit_length() - 1)
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": scale_power}
    if parallelism.communication_dtype is not None:
        config["communication_data_type"] = parallelism.communication_dtype
    if "nvme" in (parallelism.sharding.optimizer, parallelism.sharding.weights):
        offload = parallelism.offload
        config["aio"] = {
            "block_size": offload.block_size,
            "queue_depth": offload.queue_depth,
            "intra_op_parallelism": offload.intra_op_parallelism,
            "single_submit": offload.single_submit,
            "overlap_events": offload.overlap_events,
        }
    return config


def _zero(
    parallelism: ParallelismConfig, precision: PrecisionConfig, *, pin: bool
) -> dict[str, Any]:
    """The part that shards."""
    sharding, offload = parallelism.sharding, parallelism.offload
    stage = zero_stage(parallelism, precision)
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": parallelism.overlap_comm,
        "contiguous_gradients": parallelism.contiguous_gradients,
        "reduce_scatter": parallelism.reduce_scatter,
        # With it, DeepSpeed 0.19 reads and writes the weights of one parameter as another's.
        "round_robin_gradients": False,
        "reduce_bucket_size": parallelism.reduce_bucket_size,
        "allgather_bucket_size": parallelism.allgather_bucket_size,
    }
    if stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": parallelism.param_persistence_threshold,
            "stage3_prefetch_bucket_size": parallelism.prefetch_bucket_size,
            "stage3_max_live_parameters": parallelism.max_live_parameters,
            "stage3_max_reuse_distance": parallelism.max_reuse_distance,
            "stage3_gather_16bit_weights_on_model_save": False,
            "sub_group_size": parallelism.sub_group_size,
            "zero_hpz_partition_size": parallelism.hpz_partition_size,
            "zero_quantized_weights": parallelism.quantized_weights,
            "zero_quantized_gradients": parallelism.quantized_gradients,
        }
        if parallelism.model_persistence_threshold is not None:
            key = "stage3_model_persistence_threshold"
            zero[key] = parallelism.model_persistence_threshold
    if sharding.optimizer != "device":
        pinned = pin if offload.pin_memory is None else offload.pin_memory
        where = {"nvme_path": offload.nvme_path} if sharding.optimizer == "nvme" else {}
        zero["offload_optimizer"] = {
            "device": sharding.optimizer,
            "pin_memory": pinned,
            "buffer_count": 4,  # weights, gradients and two moments
            "pipeline_read": offload.pipeline_read,
            "pipeline_write": offload.pipeline_write,
            **where,
        }
        if sharding.weights != "device":
            zero["offload_param"] = {
                "device": sharding.weights,
                "pin_memory": pinned,
                "buffer_count": offload.buffer_count,
                "buffer_size": offload.buffer_size,
                "max_in_cpu": offload.max_in_cpu,
                **where,
            }
    return zero
