"""The two branches of a Reformer layer: attention and feed-forward (2001.04451).

Module names are those of the published weights. Letters of shapes are in `lsp/core/batch.py`; E
stands for the width of a group of heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lsp.models.activations import activation
from lsp.models.layers.dropout import derive_seed, seeded_dropout
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.models.layers.linear import HeadLinear
from lsp.models.layers.local import local_attention
from lsp.models.layers.lsh import hash_buckets, lsh_attention
from lsp.models.layers.reversible import Branch
from lsp.models.layers.tiling import head_spans, tile_spans
from lsp.models.memory import MemoryConfig
from lsp.models.reformer_config import ReformerConfig


@dataclass
class Memo:
    """What a branch is told for one forward pass, and what its backward must find unchanged.

    Attributes:
        segment_ids: (B, L) document numbers of whole rows, 0 for padding; None for one document
            per row.
        dropout_seed: Of every dropout mask in the branch; None drops nothing.
        hash_seed: Of the rotations that hash queries into buckets.
        num_hashes: Rounds of hashing.
        first: Position in its row of the first that is here.
        buckets: (B, N, R, L) buckets of an LSH layer, of the heads that attend here, kept by the
            forward pass: after rounding errors a query could fall into another bucket. None where
            nothing is hashed.
        hashed: First heads of the groups whose buckets are there.
    """

    segment_ids: torch.Tensor | None
    dropout_seed: int | None
    hash_seed: int
    num_hashes: int
    first: int = 0
    buckets: torch.Tensor | None = None
    hashed: set[int] = field(default_factory=set)

    def seed(self, *key: int) -> int | None:
        return None if self.dropout_seed is None else derive_seed(self.dropout_seed, *key)


class SelfAttention(nn.Module, ABC):
    """Projections to queries, keys and values, and attention, for some heads at a time.

    Attributes:
        exchange: Brings what other processes hold of a row.
    """

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.config = config
        self.exchange: Exchange = WHOLE_ROWS

    @abstractmethod
    def projections(self, x_BLD: torch.Tensor, heads: slice) -> tuple[torch.Tensor, ...]:
        """What attention works on, position by position: (B, L, E) each."""

    def across(self, qkv_BLE: Sequence[torch.Tensor], memo: Memo, heads: slice) -> torch.Tensor:
        """Attention across the positions of whole rows, of which a share is here: (B, L, E)."""
        exchange = self.exchange
        out_BLE = self.attend(exchange.to_heads(qkv_BLE), memo, exchange.heads(heads))
        return exchange.to_positions(out_BLE)

    @abstractmethod
    def attend(self, qkv_BLE: Sequence[torch.Tensor], memo: Memo, heads: slice) -> torch.Tensor:
        """Attention of some heads over whole rows: (B, L, E)."""

    def heads_at_once(self, length: int) -> int:
        """What a group of heads has to be a multiple of, where `length` positions are here."""
        return self.exchange.degree

    def project(self, linear: HeadLinear, x_BLD: torch.Tensor, heads: slice) -> torch.Tensor:
        """Projects onto some heads: (B, L, D) to (B, L, E)."""
        size = self.config.attention_head_size
        return linear(x_BLD, rows=slice(heads.start * size, heads.stop * size))

    def split(self, x_BLE: torch.Tensor) -> torch.Tensor:
        """Separates the heads: (B, L, E) to (B, N, L, H)."""
        return x_BLE.unflatten(-1, (-1, self.config.attention_head_size)).transpose(1, 2)


class LocalSelfAttention(SelfAttention):
    """Attention inside chunks of neighbouring positions."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__(config)
        width = config.num_attention_heads * config.attention_head_size
        self.query = HeadLinear(config.hidden_size, width)
        self.key = HeadLinear(config.hidden_size, width)
        self.value = HeadLinear(config.hidden_size, width)

    def projections(self, x_BLD: torch.Tensor, heads: slice) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values of some heads: (B, L, E) each."""
        return tuple(self.project(p, x_BLD, heads) for p in (self.query, self.key, self.value))

    def heads_at_once(self, length: int) -> int:
        return 1 if self.config.local_attention_is_near(length) else super().heads_at_once(length)

    def across(self, qkv_BLE: Sequence[torch.Tensor], memo: Memo, heads: slice) -> torch.Tensor:
        """As in `SelfAttention`, but brings only the neighbouring chunks where they suffice."""
        config, length = self.config, qkv_BLE[0].shape[1]
        if self.exchange.degree == 1 or not config.local_attention_is_near(length):
            return super().across(qkv_BLE, memo, heads)
        before = config.local_attn_chunk_length * config.local_num_chunks_before
        after = config.local_attn_chunk_length * config.local_num_chunks_after
        return self.attend(qkv_BLE, memo, heads, self.exchange.outer(qkv_BLE[1:], before, after))

    def attend(
        self,
        qkv_BLE: Sequence[torch.Tensor],
        memo: Memo,
        heads: slice,
        outer_BOE: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Attention over whole rows, or over a share with its neighbours' keys: (B, L, E)."""
        config = self.config
        q_BNLH, k_BNLH, v_BNLH = (self.split(x_BLE) for x_BLE in qkv_BLE)
        length = q_BNLH.shape[2]
        first = memo.first if outer_BOE else 0
        out_BNLH = local_attention(
            q_BNLH,
            k_BNLH,
            v_BNLH,
            chunk_length=config.local_attn_chunk_length,
            chunks_before=config.local_num_chunks_before,
            chunks_after=config.local_num_chunks_after,
            causal=config.is_decoder,
            segment_ids_BL=memo.segment_ids,
            dropout=0.0 if memo.dropout_seed is None else config.local_attention_probs_dropout_prob,
            dropout_seed=memo.seed(heads.start, first),
            outer_BNOH=[self.split(x_BOE) for x_BOE in outer_BOE],
            first=first,
            row_length=length * self.exchange.degree if outer_BOE else length,
        )
        return out_BNLH.transpose(1, 2).flatten(2)


class LSHSelfAttention(SelfAttention):
    """Attention inside chunks of positions that hash alike; queries and keys are one."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__(config)
        width = config.num_attention_heads * config.attention_head_size
        self.query_key = HeadLinear(config.hidden_size, width)
        self.value = HeadLinear(config.hidden_size, width)

    def projections(self, x_BLD: torch.Tensor, heads: slice) -> tuple[torch.Tensor, ...]:
        """Shared queries and keys, and values, of some heads: (B, L, E) each."""
        return tuple(self.project(p, x_BLD, heads) for p in (self.query_key, self.value))

    def attend(self, qkv_BLE: Sequence[torch.Tensor], memo: Memo, heads: slice) -> torch.Tensor:
        """Attention of some heads over whole rows: (B, L, E)."""
        config = self.config
        qk_BNLH, v_BNLH = (self.split(x_BLE) for x_BLE in qkv_BLE)
        buckets_BNRL = None
        if memo.buckets is not None:
            # Of each group before this one, a share of the heads has its buckets here.
            width = heads.stop - heads.start
            first = (heads.start - self.exchange.index * width) // self.exchange.degree
            buckets_BNRL = memo.buckets[:, first : first + width]
            if heads.start not in memo.hashed:
                buckets_BNRL.copy_(self.hash(qk_BNLH, memo, heads))
                memo.hashed.add(heads.start)
        out_BNLH = lsh_attention(
            qk_BNLH,
            v_BNLH,
            buckets_BNRL,
            chunk_length=config.lsh_attn_chunk_length,
            chunks_before=config.lsh_num_chunks_before,
            chunks_after=config.lsh_num_chunks_after,
            causal=config.is_decoder,
            segment_ids_BL=memo.segment_ids,
            dropout=0.0 if memo.dropout_seed is None else config.lsh_attention_probs_dropout_prob,
            dropout_seed=memo.seed(heads.start),
        )
        return out_BNLH.transpose(1, 2).flatten(2)

    def hash(self, qk_BNLH: torch.Tensor, memo: Memo, heads: slice) -> torch.Tensor:
        """Buckets of some heads: (B, N, R, L)."""
        return hash_buckets(
            qk_BNLH.detach(),
            self.config.num_buckets,
            memo.num_hashes,
            seed=memo.hash_seed,
            segment_ids_BL=memo.segment_ids,
            first_head=heads.start,
            of_heads=self.config.num_attention_heads,
        )


class Projection(nn.Module):
    """Holds one linear layer, under the name that the published weights give it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.dense = linear

    def forward(self, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return self.dense(x, **arguments)


class Attention(Branch):
    """Layer norm and projections, attention for some heads at a time, and their projection."""

    def __init__(self, config: ReformerConfig, kind: str, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention: SelfAttention = {"local": LocalSelfAttention, "lsh": LSHSelfAttention}[
            kind
        ](config)
        width = config.num_attention_heads * config.attention_head_size
        self.output = Projection(HeadLinear(width, config.hidden_size))

    def groups(self, x_BLD: torch.Tensor) -> list[slice]:
        """Groups of heads: a tensor of one group is within budget, or a quarter of a stream."""
        config, step = self.config, self.self_attention.heads_at_once(x_BLD.shape[1])
        heads, size = config.num_attention_heads, config.attention_head_size
        return head_spans(x_BLD, heads, size, self.memory, multiple=step)

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        stream = x_BLD.numel() * x_BLD.element_size()
        return tile_spans(x_BLD.shape[1], self.memory.tiles_for(stream, x_BLD.device.type))

    def before(
        self, x_BKD: torch.Tensor, memo: Memo, heads: slice, tile: slice
    ) -> tuple[torch.Tensor, ...]:
        return self.self_attention.projections(self.layer_norm(x_BKD), heads)

    def across(self, qkv: Sequence[torch.Tensor], memo: Memo, heads: slice) -> torch.Tensor:
        return self.self_attention.across(qkv, memo, heads)

    def after(self, x_BKE: torch.Tensor, memo: Memo, heads: slice, tile: slice) -> torch.Tensor:
        size = self.config.attention_head_size
        out_BKD = self.output(x_BKE, columns=slice(heads.start * size, heads.stop * size))
        # The mask is that of the sum over all heads: the same for every group.
        seed = memo.seed(-1, memo.first + tile.start)
        return seeded_dropout(out_BKD, self.config.hidden_dropout_prob, seed)


class FeedForward(Branch):
    """Layer norm and two linear layers, each position by itself."""

    mixes = False

    def __init__(self, config: ReformerConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = Projection(nn.Linear(config.hidden_size, config.feed_forward_size))
        self.output = Projection(nn.Linear(config.feed_forward_size, config.hidden_size))
        self.activation = activation(config.hidden_act)

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        length, chunk = x_BLD.shape[1], self.config.chunk_size_feed_forward
        tiles = self.memory.feed_forward_tiles or (-(-length // chunk) if chunk else 0)
        if tiles == 0:
            width = max(self.config.feed_forward_size, self.config.hidden_size)
            wide = x_BLD.shape[0] * length * width * x_BLD.element_size()
            tiles = self.memory.tiles_for(wide, x_BLD.device.type)
        return tile_spans(length, tiles)

    def after(self, x_BKD: torch.Tensor, memo: Memo, group: None, tile: slice) -> torch.Tensor:
        dropout, first = self.config.hidden_dropout_prob, memo.first + tile.start
        x_BKF = self.dense(self.layer_norm(x_BKD))
        x_BKF = self.activation(seeded_dropout(x_BKF, dropout, memo.seed(first, 0)))
        return seeded_dropout(self.output(x_BKF), dropout, memo.seed(first, 1))


class ReformerLayer(nn.Module):
    """The two branches of a layer; the stack calls them, never the layer."""

    def __init__(self, config: ReformerConfig, kind: str, memory: MemoryConfig) -> None:
        super().__init__()
        self.attention = Attention(config, kind, memory)
        self.feed_forward = FeedForward(config, memory)
