"""The layers of a Longformer (2004.05150): windows, gaps, global tokens, two streams.

Attention goes through the queries block by block, so memory is linear in length.

Letters of shapes: B rows, L positions here, S positions with those in the cache, N heads, H width
of a head, D width of the stream, Q queries of a block, W keys that they meet, G global tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache

from .configuration_lsp_longformer import LspLongformerConfig

BLOCK = 256
"""Queries that are attended at a time."""


def window_attention(
    q_BNLH: torch.Tensor,
    k_BNSH: torch.Tensor,
    v_BNSH: torch.Tensor,
    *,
    before: int,
    after: int,
    gaps_N: torch.Tensor,
    visible_BS: torch.Tensor,
    global_BS: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """Attention to the keys around each query, and to global tokens.

    Args:
        q_BNLH: Queries, of the last L positions.
        k_BNSH: Keys of all positions.
        v_BNSH: Values of all positions.
        before: How many keys before its own a query sees, at distances gap, 2 gap, ...
        after: How many keys after its own.
        gaps_N: Of each head.
        visible_BS: False for padding.
        global_BS: True for tokens that every query sees; None for none.
        dropout: Probability of dropping an attention weight.

    Returns:
        (B, N, L, H).
    """
    length, total = q_BNLH.shape[2], k_BNSH.shape[2]
    offset, device = total - length, q_BNLH.device
    gap_N11 = gaps_N[:, None, None]
    widest = int(gaps_N.max())
    far = None
    near_BS = visible_BS
    if global_BS is not None:
        index_BG, valid_BG = positions_of(global_BS)
        far = gather(k_BNSH, index_BG), gather(v_BNSH, index_BG), valid_BG[:, None, None]
        near_BS = visible_BS & ~global_BS  # what everyone sees is not to be counted twice
    blocks = []
    for start in range(0, length, BLOCK):
        q_BNQH = q_BNLH[:, :, start : start + BLOCK]
        first_query, last_query = offset + start, offset + start + q_BNQH.shape[2]
        first = max(0, first_query - before * widest)
        last = min(total, last_query + after * widest)
        query_Q1 = torch.arange(first_query, last_query, device=device)[:, None]
        distance_QW = torch.arange(first, last, device=device) - query_Q1
        seen_NQW = (distance_QW >= -before * gap_N11) & (distance_QW <= after * gap_N11)
        seen_NQW = seen_NQW & (distance_QW % gap_N11 == 0)
        seen_BNQW = seen_NQW & near_BS[:, None, None, first:last]
        # Padding sees itself: what it gets is never read, but has to be a number.
        itself_BQ = ~visible_BS[:, first_query:last_query]
        seen_BNQW = seen_BNQW | ((distance_QW == 0) & itself_BQ[:, None, :, None])
        k_BNWH, v_BNWH = k_BNSH[:, :, first:last], v_BNSH[:, :, first:last]
        if far is not None:
            k_BNGH, v_BNGH, valid_B11G = far
            k_BNWH, v_BNWH = torch.cat([k_BNWH, k_BNGH], 2), torch.cat([v_BNWH, v_BNGH], 2)
            valid = valid_B11G.expand(*seen_BNQW.shape[:3], -1)
            seen_BNQW = torch.cat([seen_BNQW, valid], -1)
        blocks.append(
            F.scaled_dot_product_attention(
                q_BNQH, k_BNWH, v_BNWH, attn_mask=seen_BNQW, dropout_p=dropout
            )
        )
    return torch.cat(blocks, dim=2)


def positions_of(mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each row is true, padded to the most of any: positions and whether they count."""
    count_B = mask_BS.sum(-1)
    most = int(count_B.max())
    index_BG = mask_BS.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :most]
    return index_BG, torch.arange(most, device=mask_BS.device) < count_B[:, None]


def gather(x_BNSH: torch.Tensor, index_BG: torch.Tensor) -> torch.Tensor:
    """Some positions of each row: (B, N, G, H)."""
    index = index_BG[:, None, :, None].expand(-1, x_BNSH.shape[1], -1, x_BNSH.shape[3])
    return x_BNSH.gather(2, index)


class SelfAttention(nn.Module):
    """Projections and attention, with those of global tokens beside the others."""

    def __init__(self, config: LspLongformerConfig, layer: int) -> None:
        super().__init__()
        width, window = config.hidden_size, config.windows[layer]
        self.layer, self.heads = layer, config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.before, self.after = (window, 0) if config.is_decoder else (window // 2, window // 2)
        self.gaps = config.dilations[layer]
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.query_global, self.key_global, self.value_global = (
            nn.Linear(width, width) for _ in range(3)
        )

    def split(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Separates the heads: (B, L, D) to (B, N, L, H)."""
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        x_BLD: torch.Tensor,
        visible_BS: torch.Tensor,
        global_BS: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        """(B, L, D) to the same."""
        q_BNLH, k_BNSH, v_BNSH = (self.split(p(x_BLD)) for p in (self.query, self.key, self.value))
        if cache is not None:
            k_BNSH, v_BNSH = cache.update(k_BNSH, v_BNSH, self.layer)
        dropout = self.dropout if self.training else 0.0
        out_BNLH = window_attention(
            q_BNLH,
            k_BNSH,
            v_BNSH,
            before=self.before,
            after=self.after,
            gaps_N=torch.tensor(self.gaps, device=x_BLD.device),
            visible_BS=visible_BS,
            global_BS=global_BS,
            dropout=dropout,
        )
        if global_BS is not None:
            index_BG, valid_BG = positions_of(global_BS)
            q, k, v = (
                self.split(p(x_BLD))
                for p in (self.query_global, self.key_global, self.value_global)
            )
            seen_BNGH = F.scaled_dot_product_attention(
                gather(q, index_BG), k, v, attn_mask=visible_BS[:, None, None], dropout_p=dropout
            )
            index = index_BG[:, None, :, None].expand_as(seen_BNGH)
            kept_BNGH = torch.where(
                valid_BG[:, None, :, None], seen_BNGH, out_BNLH.gather(2, index)
            )
            out_BNLH = out_BNLH.scatter(2, index, kept_BNGH)
        return out_BNLH.transpose(1, 2).flatten(2)


class Projection(nn.Module):
    """A linear layer onto the stream."""

    def __init__(self, width: int, config: LspLongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        """(B, L, E) to (B, L, D)."""
        return self.dropout(self.dense(x_BLE))


class AddedProjection(nn.Module):
    """A linear layer onto the stream, and the norm of their sum."""

    def __init__(self, width: int, config: LspLongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_BLE: torch.Tensor, stream_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, E) and (B, L, D) to (B, L, D)."""
        return self.LayerNorm(self.dropout(self.dense(x_BLE)) + stream_BLD)


class Intermediate(nn.Module):
    """The first layer of a feed-forward."""

    def __init__(self, config: LspLongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to (B, L, F)."""
        return self.activation(self.dense(x_BLD))


class Attention(nn.Module):
    """Attention of a sequential layer."""

    def __init__(self, config: LspLongformerConfig, layer: int) -> None:
        super().__init__()
        self.self = SelfAttention(config, layer)
        self.output = AddedProjection(config.hidden_size, config)

    def forward(self, x_BLD: torch.Tensor, *arguments: Any) -> torch.Tensor:
        """The stream after it."""
        return self.output(self.self(x_BLD, *arguments), x_BLD)


class Layer(nn.Module):
    """A sequential layer, with its norms after the sums, as published."""

    def __init__(self, config: LspLongformerConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.intermediate = Intermediate(config)
        self.output = AddedProjection(config.intermediate_size, config)

    def forward(self, streams: tuple[torch.Tensor, ...], *arguments: Any) -> tuple[torch.Tensor]:
        """One stream to one stream."""
        x_BLD = self.attention(streams[0], *arguments)
        return (self.output(self.intermediate(x_BLD), x_BLD),)


class AttentionBranch(nn.Module):
    """What attention of a reversible layer adds to a stream."""

    def __init__(self, config: LspLongformerConfig, layer: int) -> None:
        super().__init__()
        self.self = SelfAttention(config, layer)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.output = Projection(config.hidden_size, config)

    def forward(self, x_BLD: torch.Tensor, *arguments: Any) -> torch.Tensor:
        """(B, L, D) to the same."""
        return self.output(self.self(self.LayerNorm(x_BLD), *arguments))


class FeedForwardBranch(nn.Module):
    """What the feed-forward of a reversible layer adds to a stream."""

    def __init__(self, config: LspLongformerConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = Intermediate(config)
        self.output = Projection(config.intermediate_size, config)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to the same."""
        return self.output(self.intermediate(self.LayerNorm(x_BLD)))


class ReversibleLayer(nn.Module):
    """Two streams, each of which gets what a branch makes of the other."""

    def __init__(self, config: LspLongformerConfig, layer: int) -> None:
        super().__init__()
        self.attention = AttentionBranch(config, layer)
        self.feed_forward = FeedForwardBranch(config)

    def forward(self, streams: tuple[torch.Tensor, ...], *arguments: Any) -> tuple[Any, ...]:
        """Two streams to two streams."""
        first, second = streams
        first = first + self.attention(second, *arguments)
        return first, second + self.feed_forward(first)


class Encoder(nn.Module):
    """The layers, and where they have two streams, the norm of what both came to."""

    def __init__(self, config: LspLongformerConfig) -> None:
        super().__init__()
        self.reversible = config.residual == "reversible"
        kind = ReversibleLayer if self.reversible else Layer
        self.layer = nn.ModuleList(kind(config, n) for n in range(config.num_hidden_layers))
        if self.reversible:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def join(self, streams: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Hidden states: (B, L, D)."""
        return self.LayerNorm((streams[0] + streams[1]) / 2) if self.reversible else streams[0]


class Embeddings(nn.Module):
    """Words, positions and token types, and the norm of their sum."""

    def __init__(self, config: LspLongformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, words_BLD: torch.Tensor, place_BL: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """(B, L, D)."""
        x_BLD = words_BLD + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(x_BLD + self.position_embeddings(place_BL)))
