"""What each architecture is told of documents, padding and time."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from lsp.models.hub.table import HubRow


def prepare(row: HubRow, model: nn.Module, config: Any) -> None:
    """Gets a fresh model ready, once.

    Args:
        row: What is known of it.
        model: Of `transformers`, with its head.
        config: Settled.
    """


def arguments(
    row: HubRow,
    model: nn.Module,
    *,
    input_ids: torch.Tensor,
    segment_ids: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    causal: bool,
    config: Any,
) -> dict[str, Any]:
    """What the published body is given beside the tokens.

    Args:
        row: What is known of it.
        model: The body.
        input_ids: (B, L) tokens.
        segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
        position_ids: (B, L) positions in the document; None for 0..L-1.
        causal: Whether a position predicts the next token.
        config: Settled.
    """
    if segment_ids is None:
        segment_ids = torch.ones_like(input_ids)
    given: dict[str, Any] = {"attention_mask": (segment_ids != 0).long()}
    if position_ids is not None and "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = position_ids + config.first_position
    return given
