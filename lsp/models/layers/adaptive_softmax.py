"""Embedding and softmax that give rare tokens shorter vectors (1609.04309, 1809.10853).

The vocabulary, the likeliest tokens first, is cut into clusters. A token of the first is predicted
directly; one of a later cluster as the cluster, and then within it. Module names are those of the
published Transformer-XL. In the shapes here T stands for positions, E for a cluster's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.models.layers.sampled_softmax import LogUniformSampler, at_least_fp32, sampled_losses
from lsp.models.layers.tied import TiedEmbedding, WaitingGradient, WaitingGradients


class Projection(nn.Module):
    """Between the width of the stream and that of a cluster.

    Attributes:
        waiting: Where both ends of the model use the weight: what keeps one end's gradient.
    """

    waiting: WaitingGradient | None = None

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, narrow))

    def forward(self, x: torch.Tensor, narrow: bool = False) -> torch.Tensor:
        """From a cluster's width to the stream's, or the other way, as the head needs it."""
        weight: torch.Tensor = self.weight
        if not narrow:
            if self.waiting is not None:
                self.waiting.join(weight)
            return F.linear(x, weight)
        if self.waiting is not None:
            weight = self.waiting.of(weight)
        return F.linear(x, weight.t())


class ClusterHead(nn.Linear):
    """Scores of the tokens of a cluster, or of all clusters where their vectors are alike.

    Attributes:
        waiting: Where the weight is the embedding's too: what keeps its gradient for that.
    """

    waiting: WaitingGradient | None = None

    def forward(  # type: ignore[override]
        self, x_TE: torch.Tensor, rows: slice | torch.Tensor | None = None, paired: bool = False
    ) -> torch.Tensor:
        """Scores of some tokens.

        Args:
            x_TE: (T, E) hidden states.
            rows: Which tokens; None for all.
            paired: Whether each position is scored for one token alone.

        Returns:
            (T, number of tokens), or (T,) where `paired`.
        """
        weight: torch.Tensor = self.weight
        bias: torch.Tensor = self.bias
        if self.waiting is not None:
            weight = self.waiting.of(weight)
        if rows is not None:
            weight, bias = weight[rows], bias[rows]
        if paired:
            return (x_TE * weight).sum(-1) + bias
        return F.linear(x_TE, weight, bias)


class AdaptiveEmbedding(nn.Module):
    """Token vectors, shorter in each further cluster, brought to the width of the stream.

    Args:
        ends: One past the last token of each cluster.
        d_embed: Width of the first cluster.
        d_proj: Width of the stream.
        div_val: How many times shorter vectors are from cluster to cluster.
    """

    def __init__(self, ends: Sequence[int], d_embed: int, d_proj: int, div_val: int) -> None:
        super().__init__()
        self.spans, self.width, self.div_val = spans_of(ends), d_proj, div_val
        self.emb_layers, self.emb_projs = nn.ModuleList(), nn.ModuleList()
        for number, (first, stop) in enumerate(self.spans if div_val > 1 else [(0, ends[-1])]):
            narrow = d_embed // div_val**number
            self.emb_layers.append(TiedEmbedding(stop - first, narrow))
            if div_val > 1 or d_proj != d_embed:
                self.emb_projs.append(Projection(d_proj, narrow))

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """From ids to vectors, times the square root of their width: (B, L, D)."""
        if self.div_val == 1:
            return self._vectors(0, ids_BL)
        ids_T = ids_BL.flatten()
        # A cluster without tokens takes part too: each of its weights has to get a gradient.
        where = [((ids_T >= first) & (ids_T < stop)).nonzero()[:, 0] for first, stop in self.spans]
        parts = [
            self._vectors(number, ids_T[where[number]] - first)
            for number, (first, _) in enumerate(self.spans)
        ]
        back_T = torch.cat(where).argsort()
        return torch.cat(parts).index_select(0, back_T).view(*ids_BL.shape, -1)

    def _vectors(self, cluster: int, ids: torch.Tensor) -> torch.Tensor:
        x = self.emb_layers[cluster](ids) * self.width**0.5
        projected: torch.Tensor = self.emb_projs[cluster](x) if len(self.emb_projs) else x
        return projected


class AdaptiveLogSoftmax(nn.Module):
    """Log probabilities over clusters of tokens; with labels, straight to the loss.

    Args:
        ends: One past the last token of each cluster.
        d_embed: Width of the first cluster.
        d_proj: Width of the stream.
        div_val: How many times shorter vectors are from cluster to cluster.
        samples: Tokens that the loss is estimated with where `draw` has drawn some; 0 for none.
    """

    def __init__(
        self, ends: Sequence[int], d_embed: int, d_proj: int, div_val: int, samples: int = 0
    ) -> None:
        super().__init__()
        self.spans, self.div_val = spans_of(ends), div_val
        clusters = len(self.spans) - 1
        if clusters:
            self.cluster_weight = nn.Parameter(torch.zeros(clusters, d_embed))
            self.cluster_bias = nn.Parameter(torch.zeros(clusters))
        self.out_layers, self.out_projs = nn.ModuleList(), nn.ModuleList()
        for number, (first, stop) in enumerate(self.spans):
            narrow = d_embed // div_val**number
            if div_val > 1 or d_proj != d_embed:
                self.out_projs.append(Projection(d_proj, narrow))
            if div_val > 1:
                self.out_layers.append(ClusterHead(narrow, stop - first))
        if div_val == 1:
            self.out_layers.append(ClusterHead(d_embed, ends[-1]))
        self.sampler = LogUniformSampler(ends[-1], samples) if samples else None

    @property
    def largest(self) -> int:
        """The most scores that one position can have at once."""
        first, *others = (stop - first for first, stop in self.spans)
        return max(first + len(others), *others, 0)

    def tie(self, embedding: AdaptiveEmbedding, projections: Sequence[bool], tokens: bool) -> None:
        """Reads with the embedding's weights.

        Args:
            embedding: Of the same clusters.
            projections: Which clusters share their projection.
            tokens: Whether token vectors are shared.
        """
        if tokens:
            for own, other in zip(self.out_layers, embedding.emb_layers, strict=True):
                _share(own, other)
        for number, shared in enumerate(projections):
            if shared and len(embedding.emb_projs):
                _share(
                    self.out_projs[number], embedding.emb_projs[number if self.div_val > 1 else 0]
                )

    def learned(self) -> list[torch.Tensor]:
        """What the loss is differentiated by."""
        tied = {id(part.weight) for part, _ in self._shared()}
        own: list[torch.Tensor] = [p for p in self.parameters() if id(p) not in tied]
        return [*own, *{id(w): w.anchor for _, w in self._shared()}.values()]

    def waiting(self) -> WaitingGradients:
        """What keeps the gradients of shared weights."""
        return WaitingGradients({id(w): w for _, w in self._shared()}.values())

    def _shared(self) -> list[tuple[ClusterHead | Projection, WaitingGradient]]:
        parts = cast("list[ClusterHead | Projection]", [*self.out_layers, *self.out_projs])
        return [(part, part.waiting) for part in parts if part.waiting is not None]

    def draw(self, seed: int) -> torch.Tensor:
        """The tokens that a loss is estimated with: (S,) in rising order."""
        assert self.sampler is not None
        return self.sampler.draw(seed)

    def forward(
        self,
        hidden_BKD: torch.Tensor,
        labels_BK: torch.Tensor | None = None,
        sampled_S: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log probabilities (B, K, V), or with labels the summed loss.

        Args:
            hidden_BKD: (B, K, D) hidden states.
            labels_BK: (B, K) targets, -100 where nothing is predicted.
            sampled_S: What `draw` gave, to estimate the loss; None for the loss itself.
        """
        hidden_TD = hidden_BKD.flatten(0, 1)
        if labels_BK is None:
            return self._log_probabilities(hidden_TD).view(*hidden_BKD.shape[:2], -1)
        if sampled_S is None:
            return self.losses(hidden_TD, labels_BK.flatten()).sum()
        assert self.sampler is not None
        scores = self.out_layers[0]
        narrow_TE, labels_T = self._narrowed(0, hidden_TD), labels_BK.flatten()
        return sampled_losses(scores, narrow_TE, labels_T, sampled_S, self.sampler.log_q).sum()

    def _narrowed(self, cluster: int, hidden_TD: torch.Tensor) -> torch.Tensor:
        if not len(self.out_projs):
            return hidden_TD
        narrow_TE: torch.Tensor = self.out_projs[cluster](hidden_TD, narrow=True)
        return narrow_TE

    def _scores(self, cluster: int, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Scores within a cluster, and in the first those of the other clusters."""
        narrow_TE = self._narrowed(cluster, hidden_TD)
        if self.div_val > 1 or len(self.spans) == 1:
            scores = self.out_layers[cluster](narrow_TE)
        else:
            scores = self.out_layers[0](narrow_TE, slice(*self.spans[cluster]))
        if cluster == 0 and len(self.spans) > 1:
            of_clusters = F.linear(narrow_TE, self.cluster_weight, self.cluster_bias)
            scores = torch.cat([scores, of_clusters], dim=-1)
        return at_least_fp32(scores)

    def losses(self, hidden_TD: torch.Tensor, labels_T: torch.Tensor) -> torch.Tensor:
        """Loss of each position, 0 where nothing is predicted: (T,) fp32."""
        shortlist = self.spans[0][1]
        head_T = labels_T
        for number, (first, _) in enumerate(self.spans[1:]):
            head_T = torch.where(labels_T >= first, shortlist + number, head_T)
        loss = partial(F.cross_entropy, ignore_index=IGNORE_INDEX, reduction="none")
        losses_T = loss(self._scores(0, hidden_TD), head_T)
        for number, (first, stop) in enumerate(self.spans[1:], start=1):
            # A cluster that nothing is predicted in takes part too, as in the embedding.
            inside = ((labels_T >= first) & (labels_T < stop)).nonzero()[:, 0]
            scores = self._scores(number, hidden_TD[inside])
            losses_T = losses_T.index_add(0, inside, loss(scores, labels_T[inside] - first))
        return losses_T

    def _log_probabilities(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        shortlist = self.spans[0][1]
        head = self._scores(0, hidden_TD).log_softmax(-1)
        parts = [head[:, :shortlist]]
        for number in range(1, len(self.spans)):
            within = self._scores(number, hidden_TD).log_softmax(-1)
            parts.append(within + head[:, shortlist + number - 1, None])
        return torch.cat(parts, dim=-1)


def spans_of(ends: Sequence[int]) -> list[tuple[int, int]]:
    """First and one past the last token of each cluster."""
    return list(pairwise([0, *ends]))


def _share(own: nn.Module, other: nn.Module) -> None:
    assert isinstance(own, ClusterHead | Projection)
    assert isinstance(other, TiedEmbedding | Projection)
    own.weight = other.weight
    other.waiting = own.waiting = other.waiting or WaitingGradient()
