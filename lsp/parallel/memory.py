"""How many bytes the state of a training takes: weights, gradients, optimizer state.

Pure arithmetic (1910.02054, section 3.1), with the copies that DeepSpeed 0.19 keeps. What depends
on the batch, activations, is the model's to estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4

MOMENTS = {"AdamW": 2 * FP32, "Muon": FP32, "Adafactor": 0}
"""Bytes of optimizer state for a parameter: two moments, one (its embeddings, kept by AdamW, have
two), or rows and columns of a matrix, which are few."""

BUCKET = 50_000_000
"""Elements of a gradient bucket (`parallelism.reduce_bucket_size`)."""

GROUP = 100_000_000
"""Elements that ZeRO-3 updates at once (`parallelism.sub_group_size`)."""

LIVE = 100_000_000
"""Elements that ZeRO-3 keeps gathered (`parallelism.max_live_parameters`)."""


@dataclass(frozen=True)
class Sharding:
    """What a strategy does with the state.

    Attributes:
        stage: Of ZeRO: 1 shards optimizer state, 2 gradients too, 3 weights too; 0 nothing.
        optimizer: Where optimizer state, fp32 weights and gradients stay: `device`, `cpu`, `nvme`.
        weights: Where sharded weights stay while they are not used.
    """

    stage: int = 0
    optimizer: str = "device"
    weights: str = "device"


SHARDINGS = {
    "single": Sharding(),
    "ddp": Sharding(),
    "zero1": Sharding(1),
    "zero2": Sharding(2),
    "zero3": Sharding(3),
    "zero2_offload": Sharding(2, optimizer="cpu"),
    "zero3_offload": Sharding(3, optimizer="cpu", weights="cpu"),
    "zero3_nvme": Sharding(3, optimizer="nvme", weights="nvme"),
}
"""What every strategy does."""


def state_bytes(
    strategy: str,
    parameters: int,
    world_size: int,
    precision: str,
    optimizer: str = "AdamW",
    *,
    bucket: int = BUCKET,
    live: int = LIVE,
) -> dict[str, int]:
    """Bytes on one device; what is offloaded to the host or to disks is not counted.

    Args:
        strategy: A key of `SHARDINGS`.
        parameters: Trained elements of the whole model.
        world_size: Number of processes that shard.
        precision: `fp32`, `bf16` or `fp16`.
        optimizer: `AdamW`, `Adafactor` or `Muon`.
        bucket: Elements of a gradient bucket of ZeRO; two exist where communication overlaps.
        live: Elements that ZeRO-3 may keep gathered.

    Returns:
        `weights` as the model computes with them, `gradients`, and `optimizer state`, to which
        belong fp32 masters of the weights and what the update takes for a moment. Allocators and
        libraries take more: on a CPU with gloo, two processes under ZeRO were seen to hold 2 to
        13 bytes for a parameter beyond this, under `single` and `ddp` 1 to 3.
    """
    sharding = SHARDINGS[strategy]
    if sharding.stage == 0:
        # Weights are cast for each product, and stay in fp32.
        return {
            "weights": FP32 * parameters,
            "gradients": FP32 * parameters,
            "optimizer state": MOMENTS[optimizer] * parameters,
        }
    held, part = _width(precision), -(-parameters // world_size)
    offloaded = sharding.optimizer != "device"
    weights = held * parameters
    if sharding.stage == 3:
        weights = held * min(parameters, live) if world_size > 1 or offloaded else 0
        weights += held * part if sharding.weights == "device" else 0
    buckets = 2 * held * min(parameters, bucket)
    if offloaded:
        return {"weights": weights, "gradients": buckets, "optimizer state": 0}
    # In the step, the partition's gradients exist once more, in fp32 and in one piece.
    gradients = FP32 * part
    gradients += held * parameters if _stage(sharding, precision) == 1 else buckets + FP32 * part
    # ZeRO-3 in fp32 updates its partition in place; the others update a copy.
    master = 0 if sharding.stage == 3 and precision == "fp32" else FP32 * part
    # torch's update of a partition, which is one tensor, takes two more of its size.
    master += 2 * FP32 * (min(part, GROUP) if sharding.stage == 3 else part)
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer state": master + MOMENTS[optimizer] * part,
    }


def host_bytes(
    strategy: str, parameters: int, world_size: int, precision: str, optimizer: str = "AdamW"
) -> int:
    """Bytes that one process keeps in the host's memory beside its device; arguments as above."""
    sharding = SHARDINGS[strategy]
    if sharding.optimizer != "cpu":
        return 0
    # Masters, the gradients of the step and those that are still being added up; then weights:
    # ZeRO-2 updates them in a buffer on the host, ZeRO-3 keeps them there.
    each = 3 * FP32 + MOMENTS[optimizer] + _width(precision)
    return each * -(-parameters // world_size)


def _stage(sharding: Sharding, precision: str) -> int:
    return max(2, sharding.stage) if precision == "bf16" else sharding.stage


def _width(precision: str) -> int:
    """Bytes of a weight as ZeRO's module holds it."""
    return FP32 if precision == "fp32" else 2
