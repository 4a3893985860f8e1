"""What is predicted of each token, for measurements: what losses add up, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lsp.core.batch import IGNORE_INDEX
from lsp.models.hub.heads import Head
from lsp.models.interface import SCORES_AT_ONCE


@dataclass(frozen=True)
class Tokens:
    """Hidden states, and what is to be predicted from them.

    Attributes:
        hidden: (B, K, D), before the head.
        labels: (B, K) tokens, -100 where nothing is predicted.
    """

    hidden: torch.Tensor
    labels: torch.Tensor

    @property
    def predicted(self) -> torch.Tensor:
        """(B, K) where something is predicted."""
        return self.labels != IGNORE_INDEX


@torch.no_grad()
def token_losses(head: Head, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropies of the T predicted tokens, and whether each was the likeliest: (T,) each."""
    labels_T = tokens.labels[tokens.predicted]
    losses_T = labels_T.new_zeros(labels_T.shape, dtype=torch.float32)
    hits_T = torch.zeros_like(labels_T, dtype=torch.bool)
    for part, scores_KV in scored(head, tokens):
        losses_T[part] = F.cross_entropy(scores_KV, labels_T[part], reduction="none")
        hits_T[part] = scores_KV.argmax(-1) == labels_T[part]
    return losses_T, hits_T


@torch.no_grad()
def scored(head: Head, tokens: Tokens) -> Iterator[tuple[slice, torch.Tensor]]:
    """Runs of the T predicted tokens with their fp32 scores (K, V); all of them may not fit."""
    hidden_TD = tokens.hidden[tokens.predicted]
    size = max(1, SCORES_AT_ONCE // head.vocab_size)
    for start in range(0, len(hidden_TD), size):
        part = slice(start, start + size)
        yield part, head.scores(hidden_TD[None, part])[0].float()
