"""The one place where a DeepSpeed dict is made."""

from __future__ import annotations

from typing import Any

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
    """
    zero: dict[str, Any] = {
        "stage": zero_stage(parallelism, precision),
        "overlap_comm": parallelism.overlap_comm,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": parallelism.reduce_bucket_size,
        "allgather_bucket_size": parallelism.allgather_bucket_size,
    }
    if parallelism.zero_stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": parallelism.param_persistence_threshold,
            "stage3_prefetch_bucket_size": parallelism.prefetch_bucket_size,
            "stage3_max_live_parameters": parallelism.max_live_parameters,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "train_batch_size": micro_batch * world_size,
        "gradient_clipping": gradient_clip,
        "zero_optimization": zero,
        # torch's AdamW builds nothing at run time; DeepSpeed calls it untested all the same.
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
    return config
