"""What a model can be asked to read on from, when it generates."""

from __future__ import annotations

from typing import Any

from torch import nn

from lsp.core.errors import require


def check_step(model: nn.Module, new: int, read: int = 0, positions: int | None = None) -> None:
    """Refuses a `LanguageModel.step` that cannot be.

    Args:
        model: Asked to read on; in evaluation mode, and causal.
        new: Tokens to read.
        read: Tokens read already.
        positions: How many have an embedding; None where there are no absolute ones.

    Raises:
        UserError: The model is not causal, or not in evaluation mode; there is nothing to read, or
            more than there are positions.
    """
    config: Any = model.config
    require(config.is_decoder, "is_decoder=false: a bidirectional model cannot generate text")
    require(not model.training, "generation needs model.eval(): dropout is on in training mode")
    require(new > 0, "the prompt is empty: give at least one token to continue")
    require(
        positions is None or read + new <= positions,
        f"{read + new} tokens are more than the {positions} positions that have an embedding: "
        "generate fewer tokens, or shorten the prompt",
    )
