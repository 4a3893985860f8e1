"""The layers of NEZHA (1909.00204): attention that knows how far away what it sees is.

A query has one product with each relative position, of which every key takes one, and what the
positions add to its output is their table weighted by how much attention lies at each: there is no
vector for a pair of positions. Queries are attended block by block.

Letters of shapes: B rows, L positions here, S positions with those in the cache, N heads, H width
of a head, D width of the stream, Q queries of a block, P relative positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache

from .configuration_nezha import NezhaConfig

BLOCK = 256
"""Queries that are attended at a time."""
LOG_10000 = 9.210340371976184


def sinusoids(reach: int, size: int, device: torch.device) -> torch.Tensor:
    """The fixed vectors of the relative positions -reach .. reach: (P, H)."""
    place_P1 = torch.arange(2 * reach + 1, dtype=torch.float32, device=device)[:, None]
    pair = torch.arange(0, size, 2, dtype=torch.float32, device=device)
    angles = place_P1 * torch.exp(pair * (-LOG_10000 / size))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class SelfAttention(nn.Module):
    """Projections and attention."""

    def __init__(self, config: NezhaConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer, self.heads = layer, config.num_attention_heads
        self.reach, self.causal = config.max_relative_position, config.is_decoder
        self.dropout = config.attention_probs_dropout_prob
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def split(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Separates the heads: (B, L, D) to (B, N, L, H)."""
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self, x_BLD: torch.Tensor, visible: torch.Tensor, cache: Cache | None, shown: list[Any]
    ) -> torch.Tensor:
        """Attention.

        Args:
            x_BLD: The stream.
            visible: (B, 1, S) or (B, L, S), false for keys that are not seen.
            cache: Keys and values of the tokens before.
            shown: Gets the weights (B, N, Q, S) of each block of queries.

        Returns:
            (B, L, D).
        """
        q_BNLH, k_BNSH, v_BNSH = (self.split(p(x_BLD)) for p in (self.query, self.key, self.value))
        if cache is not None:
            k_BNSH, v_BNSH = cache.update(k_BNSH, v_BNSH, self.layer)
        length, total, size = q_BNLH.shape[2], k_BNSH.shape[2], q_BNLH.shape[3]
        table_PH = sinusoids(self.reach, size, x_BLD.device).to(q_BNLH.dtype)
        key_S = torch.arange(total, device=x_BLD.device)
        blocks = []
        for start in range(0, length, BLOCK):
            q_BNQH = q_BNLH[:, :, start : start + BLOCK]
            query_Q = key_S[total - length + start :][: q_BNQH.shape[2]]
            distance_QS = key_S - query_Q[:, None]
            place_QS = distance_QS.clamp(-self.reach, self.reach) + self.reach
            place = place_QS.expand(*q_BNQH.shape[:2], -1, -1)
            scores = q_BNQH @ k_BNSH.transpose(-1, -2)
            scores = scores + (q_BNQH @ table_PH.T).gather(-1, place)
            seen = visible if visible.shape[1] == 1 else visible[:, start : start + BLOCK]
            if self.causal:
                seen = seen & (distance_QS <= 0)
            lowest = torch.finfo(scores.dtype).min
            scores = (scores * size**-0.5).masked_fill(~seen[:, None], lowest)
            weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
            by_place = weights.new_zeros(*weights.shape[:3], len(table_PH))
            by_place = by_place.scatter_add(-1, place, weights)
            blocks.append(weights @ v_BNSH + by_place @ table_PH)
            shown.append(weights)
        return torch.cat(blocks, dim=2).transpose(1, 2).flatten(2)


class AddedProjection(nn.Module):
    """A projection onto the stream, the sum with it, and the norm of that."""

    def __init__(self, width: int, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x_BLE: torch.Tensor, stream_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D)."""
        return self.LayerNorm(self.dropout(self.dense(x_BLE)) + stream_BLD)


class Attention(nn.Module):
    """Attention and what follows it."""

    def __init__(self, config: NezhaConfig, layer: int) -> None:
        super().__init__()
        self.self = SelfAttention(config, layer)
        self.output = AddedProjection(config.hidden_size, config)

    def forward(self, x_BLD: torch.Tensor, *arguments: Any) -> torch.Tensor:
        """The stream after it."""
        return self.output(self.self(x_BLD, *arguments), x_BLD)


class Intermediate(nn.Module):
    """The first half of a feed-forward."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to (B, L, F)."""
        return self.activation(self.dense(x_BLD))


class Layer(nn.Module):
    """Attention and feed-forward, with their norms after the sums."""

    def __init__(self, config: NezhaConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.intermediate = Intermediate(config)
        self.output = AddedProjection(config.intermediate_size, config)

    def forward(self, x_BLD: torch.Tensor, *arguments: Any) -> torch.Tensor:
        """The stream after it."""
        x_BLD = self.attention(x_BLD, *arguments)
        return self.output(self.intermediate(x_BLD), x_BLD)


class Encoder(nn.Module):
    """Holds the layers, under their published name."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, n) for n in range(config.num_hidden_layers))


class Embeddings(nn.Module):
    """Words and token types, and the norm of their sum."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words_BLD: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """(B, L, D)."""
        x_BLD = words_BLD + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(x_BLD))


class Pooler(nn.Module):
    """What is told of a text, from its first token."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        """(B, D)."""
        return torch.tanh(self.dense(hidden_BLD[:, 0]))


class Transform(nn.Module):
    """A dense layer and a norm before the scores."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D)."""
        return self.LayerNorm(self.activation(self.dense(hidden_BLD)))


class Predictions(nn.Module):
    """Scores of tokens; `bias` is a second name of the decoder's."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, V)."""
        return self.decoder(self.transform(hidden_BLD))


class Heads(nn.Module):
    """The heads of pretraining, or some of them."""

    def __init__(self, config: NezhaConfig, *, tokens: bool, pairs: bool) -> None:
        super().__init__()
        if tokens:
            self.predictions = Predictions(config)
        if pairs:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)
