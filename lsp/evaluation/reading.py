"""Losses of chosen tokens of windows of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lsp.core.batch import IGNORE_INDEX
from lsp.models.interface import LanguageModel


def read_windows(
    model: LanguageModel, windows_BL: torch.Tensor, scored: int, segment: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads windows of which nothing before is known, and predicts their last tokens.

    Args:
        model: A causal model in evaluation mode.
        windows_BL: (B, L) tokens.
        scored: How many at the end of each window are predicted; fewer than L.
        segment: How many are read at a time; those after the first by what the model remembers.
            L or more for a model without memory.

    Returns:
        (B, scored) losses in nats, and (B, scored) whether the right token was the likeliest.
    """
    batch, length = windows_BL.shape
    device = next(model.parameters()).device
    windows_BL = windows_BL.to(device)
    labels_BL = torch.full_like(windows_BL, IGNORE_INDEX)
    labels_BL[:, length - scored - 1 : -1] = windows_BL[:, length - scored :]
    positions_BL = torch.arange(length, device=device).expand_as(windows_BL)
    losses, hits = [], []
    model.recall(None)
    for start in range(0, length, segment):
        part = slice(start, min(start + segment, length))
        ids_BK = windows_BL[:, part]
        losses_T, hits_T = model.token_losses(
            ids_BK, labels_BL[:, part], torch.ones_like(ids_BK), positions_BL[:, part]
        )
        if len(losses_T):
            losses.append(losses_T.view(batch, -1))
            hits.append(hits_T.view(batch, -1))
        if part.stop < length:
            model.recall(model.remembered())
    model.recall(None)
    return torch.cat(losses, dim=1), torch.cat(hits, dim=1)


def in_batches(windows: Sequence[torch.Tensor], tokens_at_once: int) -> Iterator[torch.Tensor]:
    """Stacks (L,) windows of one length into (B, L) batches of about so many tokens."""
    if windows:
        size = max(1, tokens_at_once // len(windows[0]))
        for start in range(0, len(windows), size):
            yield torch.stack(list(windows[start : start + size]))
