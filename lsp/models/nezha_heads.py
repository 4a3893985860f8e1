"""What NEZHA is pretrained with: scores of masked tokens, and of which text follows which.

As in BERT (1810.04805, section 3.1), under the published names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.models.activations import activation
from lsp.models.layers.losses import LanguageModelHead
from lsp.models.nezha_config import NezhaConfig


class Transform(nn.Module):
    """A dense layer and a norm."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.activation = activation(config.hidden_act)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_BKD: torch.Tensor) -> torch.Tensor:
        normed_BKD: torch.Tensor = self.LayerNorm(self.activation(self.dense(hidden_BKD)))
        return normed_BKD


class Predictions(nn.Module):
    """Scores of tokens."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder = LanguageModelHead(config.hidden_size, config.vocab_size)

    def learned(self) -> list[torch.Tensor]:
        """What the loss is differentiated by."""
        return [*self.transform.parameters(), *self.decoder.learned()]

    def forward(
        self, hidden_BKD: torch.Tensor, labels_BK: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores (B, K, V), or with labels the summed loss."""
        hidden_BKD = self.transform(hidden_BKD)
        if labels_BK is None:
            scores: torch.Tensor = self.decoder(hidden_BKD)
            return scores
        loss: torch.Tensor = self.decoder(hidden_BKD, labels_BK)[0]
        return loss


class Heads(nn.Module):
    """The heads of pretraining; `seq_relationship` is only there where pairs of texts are."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)
        if config.sentence_pairs:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)


class Pooler(nn.Module):
    """What is told of a text, from its first token."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_BPD: torch.Tensor) -> torch.Tensor:
        """From hidden states of first tokens to as many vectors: (..., D)."""
        return torch.tanh(self.dense(first_BPD))


def pairs_loss(
    scores_BP2: torch.Tensor, pair_labels_BP: torch.Tensor, predicted_B: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of pairs, weighted so that it adds to a loss that is summed over tokens.

    The published loss is a mean over tokens and a mean over pairs. Each row's mean over its pairs
    counts as often here as the row has predicted tokens, so that one sum over one count is that,
    whatever rows are added up where.

    Args:
        scores_BP2: (B, P, 2) scores of 0 and 1.
        pair_labels_BP: (B, P) 0 or 1, -100 for no pair.
        predicted_B: (B,) predicted tokens of each row.

    Returns:
        fp32 scalar.
    """
    losses_BP = F.cross_entropy(
        scores_BP2.float().flatten(0, 1),
        pair_labels_BP.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    ).view(pair_labels_BP.shape)
    pairs_B = (pair_labels_BP != IGNORE_INDEX).sum(1).clamp(min=1)
    return (losses_BP.sum(1) * predicted_B / pairs_B).sum()
