"""Embedding and softmax that give rare tokens shorter vectors (1609.04309, 1809.10853).

The vocabulary, the likeliest tokens first, is cut into clusters. A token of the first is predicted
directly; one of a later cluster as the cluster, and then within it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_transfo_xl import TransfoXLConfig


def clusters(config: TransfoXLConfig) -> list[tuple[int, int]]:
    """First and one past the last token of each."""
    return list(pairwise([0, *config.cluster_ends]))


class AdaptiveEmbedding(nn.Module):
    """Token vectors, brought to the width of the stream and scaled by its square root."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.config = config
        self.emb_layers, self.emb_projs = nn.ModuleList(), nn.ParameterList()
        spans = clusters(config) if config.div_val > 1 else [(0, config.vocab_size)]
        for number, (first, stop) in enumerate(spans):
            width = config.d_embed // config.div_val**number
            self.emb_layers.append(nn.Embedding(stop - first, width))
            if config.div_val > 1 or config.d_model != config.d_embed:
                self.emb_projs.append(nn.Parameter(torch.empty(config.d_model, width)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """From ids (...) to vectors (..., d_model)."""
        scale = self.config.d_model**0.5
        if self.config.div_val == 1:
            x = self.emb_layers[0](ids)
            return scale * (F.linear(x, self.emb_projs[0]) if len(self.emb_projs) else x)
        out = self.emb_projs[0].new_zeros(*ids.shape, self.config.d_model)
        for number, (first, stop) in enumerate(clusters(self.config)):
            inside = (ids >= first) & (ids < stop)
            vectors = self.emb_layers[number](ids[inside] - first)
            out[inside] = F.linear(vectors, self.emb_projs[number]).to(out.dtype)
        return scale * out


class AdaptiveLogSoftmax(nn.Module):
    """Log probabilities over clusters of tokens."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.config, self.spans = config, clusters(config)
        later = len(config.cutoffs)
        if later:
            self.cluster_weight = nn.Parameter(torch.zeros(later, config.d_embed))
            self.cluster_bias = nn.Parameter(torch.zeros(later))
        self.out_layers, self.out_projs = nn.ModuleList(), nn.ParameterList()
        for number, (first, stop) in enumerate(self.spans):
            width = config.d_embed // config.div_val**number
            if config.div_val > 1 or config.d_model != config.d_embed:
                self.out_projs.append(nn.Parameter(torch.empty(config.d_model, width)))
            if config.div_val > 1:
                self.out_layers.append(nn.Linear(width, stop - first))
        if config.div_val == 1:
            self.out_layers.append(nn.Linear(config.d_embed, config.vocab_size))

    def scores(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """(T, d_model) to the scores of a cluster's tokens, and with the first of all others."""
        if len(self.out_projs):
            hidden = hidden @ self.out_projs[number]
        layer: Any = self.out_layers[number if self.config.div_val > 1 else 0]
        span = slice(None) if self.config.div_val > 1 else slice(*self.spans[number])
        weight, bias = layer.weight[span], layer.bias[span]
        if number == 0 and len(self.spans) > 1:
            weight = torch.cat([weight, self.cluster_weight])
            bias = torch.cat([bias, self.cluster_bias])
        return F.linear(hidden, weight, bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., d_model) to the log probabilities of all tokens, (..., V)."""
        head = self.scores(0, hidden).log_softmax(-1)
        shortlist = self.spans[0][1]
        parts = [head[..., :shortlist]]
        for number in range(1, len(self.spans)):
            within = self.scores(number, hidden).log_softmax(-1)
            parts.append(within + head[..., shortlist + number - 1, None])
        return torch.cat(parts, dim=-1)

    def losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each position: (T, d_model) and (T,) to (T,), 0 for the label -100."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        head = self.scores(0, hidden).log_softmax(-1, dtype=wide)
        shortlist = self.spans[0][1]
        found = torch.zeros_like(head[:, 0])
        for number, (first, stop) in enumerate(self.spans):
            inside = ((labels >= first) & (labels < stop)).nonzero()[:, 0]
            token = labels[inside, None] - first
            if number == 0:
                chosen = head[inside].gather(1, token)[:, 0]
            else:
                within = self.scores(number, hidden[inside]).log_softmax(-1, dtype=wide)
                chosen = within.gather(1, token)[:, 0] + head[inside, shortlist + number - 1]
            found = found.index_put((inside,), -chosen)
        return found
