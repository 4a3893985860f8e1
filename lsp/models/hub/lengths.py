"""Which lengths of rows an architecture can have, and what they follow from; needs no torch."""

from __future__ import annotations

from typing import Any

from lsp.core.errors import require

BLOCK_SPARSE = ("big_bird", "bigbird_pegasus")
MRA_BLOCK = 32


def multiple(config: Any) -> int:
    """What lengths have to be a multiple of.

    Args:
        config: A `HubConfig`, settled or not.
    """
    if _block_sparse(config):
        return int(config.value("block_size"))
    if config.type == "mra":
        return MRA_BLOCK
    if config.type == "nystromformer":
        return int(config.value("num_landmarks"))
    return 1


def shortest(config: Any) -> int:
    """The shortest row that is computed as longer ones are."""
    if _block_sparse(config):
        # Whatever is shorter makes the published model attend everywhere, from then on for good.
        return (6 + 2 * int(config.value("num_random_blocks"))) * multiple(config)
    return multiple(config)


def check(config: Any, length: int) -> None:
    """Refuses a length.

    Raises:
        UserError: It is one that the architecture cannot have; the message names those it can.
    """
    least, step, kind = shortest(config), multiple(config), config.type
    require(
        length >= least,
        f"sequence_length={length} is too short for model_type={kind}: "
        + (
            f"up to {least - step} its blocks see everything (num_random_blocks="
            f"{config.value('num_random_blocks')}, block_size={step}); use {least} or more, or "
            "smaller blocks"
            if _block_sparse(config)
            else f"use {least} or a multiple of it"
        ),
    )
    below = length // step * step
    require(
        length % step == 0,
        f"sequence_length={length} is not a multiple of {step}, as model_type={kind} needs: use "
        f"{below} or {below + step}",
    )
    for key, positions in config.tables.items():
        require(
            length <= positions,
            f"sequence_length={length} is longer than the {positions} positions of "
            f"architecture.model_init_config.{key}: shorten it, or raise that",
        )


def _block_sparse(config: Any) -> bool:
    return config.type in BLOCK_SPARSE and config.value("attention_type") == "block_sparse"
