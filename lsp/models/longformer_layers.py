"""The two blocks of a Longformer layer: attention and feed-forward (2004.05150).

Module names are those of the published weights. Letters of shapes are in `lsp/core/batch.py`; E
stands for all heads side by side, G for global tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lsp.models.layers.dropout import derive_seed
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.models.layers.global_attention import global_attention
from lsp.models.layers.linear import HeadLinear
from lsp.models.layers.post_norm import Output, PostNormLayer
from lsp.models.layers.sequential import Block
from lsp.models.layers.sliding_window import (
    dilated_window_attention,
    reach_around,
    sliding_window_attention,
)
from lsp.models.layers.tiling import tile_spans
from lsp.models.longformer_config import LongformerConfig
from lsp.models.memory import MemoryConfig


@dataclass
class Memo:
    """What a block is told for one forward pass.

    Attributes:
        segment_ids: (B, L) document numbers of whole rows, 0 for padding; None for one document
            per row.
        global_mask: (B, L) true, in whole rows, for tokens that see and are seen by all of their
            document; None where there are none.
        dropout_seed: Of every dropout mask in the block; None drops nothing.
        first: Position in its row of the first that is here.
    """

    segment_ids: torch.Tensor | None
    global_mask: torch.Tensor | None
    dropout_seed: int | None
    first: int = 0

    def seed(self, *key: int) -> int | None:
        return None if self.dropout_seed is None else derive_seed(self.dropout_seed, *key)


class SelfAttention(nn.Module):
    """Projections, with those of the tokens that see everything beside the others."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        width, self.head_size = config.hidden_size, config.head_size
        self.query, self.key, self.value = (HeadLinear(width, width, True) for _ in range(3))
        self.query_global, self.key_global, self.value_global = (
            HeadLinear(width, width, True) for _ in range(3)
        )

    def forward(
        self, x_BKD: torch.Tensor, global_BK: torch.Tensor | None, heads: slice
    ) -> tuple[torch.Tensor, ...]:
        """(B, K, E) each: queries, keys, values, and keys and values for global tokens if any."""
        rows = slice(heads.start * self.head_size, heads.stop * self.head_size)
        local = (self.query, self.key, self.value)
        q_BKE, k_BKE, v_BKE = (project(x_BKD, rows=rows) for project in local)
        if global_BK is None:
            return q_BKE, k_BKE, v_BKE
        # What a global token would see through its window is not used, nor is that query needed.
        # A tile without any takes part too: every process has to have the same gradients.
        where = global_BK.nonzero(as_tuple=True)
        q_BKE = q_BKE.index_put(where, self.query_global(x_BKD[where], rows=rows))
        for_global = (self.key_global, self.value_global)
        return q_BKE, k_BKE, v_BKE, *(project(x_BKD, rows=rows) for project in for_global)

    def global_parameters(self) -> list[nn.Parameter]:
        """Those that only global tokens use."""
        projections = (self.query_global, self.key_global, self.value_global)
        return [p for projection in projections for p in projection.parameters()]


class WindowAttention(nn.Module):
    """Attention around each token, and of global tokens with all of their document.

    Attributes:
        exchange: Brings what other processes hold of a row.
    """

    def __init__(self, config: LongformerConfig, layer: int, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        window = config.windows[layer]
        self.reach = (window, 0) if config.is_decoder else (window // 2, window // 2)
        self.gaps = config.dilations[layer]
        self.exchange: Exchange = WHOLE_ROWS
        self.self = SelfAttention(config)
        self.heads = slice(0, config.num_attention_heads)

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        stream = x_BLD.numel() * x_BLD.element_size()
        return tile_spans(x_BLD.shape[1], self.memory.tiles_for(stream, x_BLD.device.type))

    def project(
        self, x_BKD: torch.Tensor, memo: Memo, heads: slice, tile: slice
    ) -> tuple[torch.Tensor, ...]:
        """What attention of some heads works on, from a tile of the row: (B, K, E) each."""
        global_BK = memo.global_mask
        if global_BK is not None:
            global_BK = global_BK[:, memo.first + tile.start : memo.first + tile.stop]
        return self.self(x_BKD, global_BK, heads)

    def sees_near(self, length: int, memo: Memo) -> bool:
        """Whether of other processes' positions the neighbouring chunks suffice."""
        near = memo.global_mask is None and max(self.gaps) == 1
        return near and self.exchange.degree > 1 and self.config.windows_are_near(length)

    def mix(self, mixed: Sequence[torch.Tensor], memo: Memo, heads: slice) -> torch.Tensor:
        """Attention of some heads over whole rows, of which a share is here: (B, L, E)."""
        if self.sees_near(mixed[0].shape[1], memo):
            return self.attend_near(mixed, memo, heads)
        exchange = self.exchange
        out_BLE = self.attend(exchange.to_heads(mixed), memo, exchange.heads(heads))
        return exchange.to_positions(out_BLE)

    def attend(self, mixed: Sequence[torch.Tensor], memo: Memo, heads: slice) -> torch.Tensor:
        """Attention of some heads over whole rows: (B, L, E)."""
        q_BNLH, k_BNLH, v_BNLH, *for_global = (self.split(x_BLE) for x_BLE in mixed)
        options = self.options(memo, memo.seed(0, heads.start))
        gaps = self.gaps[heads]
        if max(gaps) > 1:
            out_BNLH = dilated_window_attention(q_BNLH, k_BNLH, v_BNLH, gaps, **options)
        else:
            out_BNLH = sliding_window_attention(
                q_BNLH, k_BNLH, v_BNLH, global_BL=memo.global_mask, **options
            )
        if memo.global_mask is not None:
            out_BNLH = global_attention(
                out_BNLH,
                q_BNLH,
                *for_global,
                global_BL=memo.global_mask,
                segment_ids_BL=memo.segment_ids,
                dropout=options["dropout"],
                dropout_seed=memo.seed(1, heads.start),
            )
        return out_BNLH.transpose(1, 2).flatten(2)

    def attend_near(self, mixed: Sequence[torch.Tensor], memo: Memo, heads: slice) -> torch.Tensor:
        """Attention of some heads over a share of a row, with the keys around it: (B, L, E)."""
        outer_BOE = self.exchange.outer(mixed[1:], *reach_around(*self.reach))
        out_BNLH = sliding_window_attention(
            *(self.split(x_BLE) for x_BLE in mixed),
            outer_BNOH=[self.split(x_BOE) for x_BOE in outer_BOE],
            first=memo.first,
            **self.options(memo, memo.seed(3, memo.first, heads.start)),
        )
        return out_BNLH.transpose(1, 2).flatten(2)

    def options(self, memo: Memo, dropout_seed: int | None) -> dict[str, Any]:
        """What every way to attend has to know."""
        dropped = self.config.attention_probs_dropout_prob
        return {
            "before": self.reach[0],
            "after": self.reach[1],
            "segment_ids_BL": memo.segment_ids,
            "dropout": 0.0 if dropout_seed is None else dropped,
            "dropout_seed": dropout_seed,
        }

    def split(self, x_BLE: torch.Tensor) -> torch.Tensor:
        """Separates the heads: (B, L, E) to (B, N, L, H)."""
        return x_BLE.unflatten(-1, (-1, self.config.head_size)).transpose(1, 2)


class Attention(WindowAttention, Block):
    """Attention of all heads, the sum with its input, and the norm of that."""

    def __init__(self, config: LongformerConfig, layer: int, memory: MemoryConfig) -> None:
        super().__init__(config, layer, memory)
        self.output = Output(config.hidden_size, config)

    def before(self, x_BKD: torch.Tensor, memo: Memo, tile: slice) -> tuple[torch.Tensor, ...]:
        return self.project(x_BKD, memo, self.heads, tile)

    def across(self, mixed: Sequence[torch.Tensor], memo: Memo) -> torch.Tensor:
        return self.mix(mixed, memo, self.heads)

    def after(
        self, mixed_BKE: torch.Tensor | None, x_BKD: torch.Tensor, memo: Memo, tile: slice
    ) -> torch.Tensor:
        assert mixed_BKE is not None
        out_BKD: torch.Tensor = self.output(mixed_BKE, x_BKD, memo.seed(2, memo.first + tile.start))
        return out_BKD


class LongformerLayer(PostNormLayer):
    """A layer; as a block it is its feed-forward."""

    def __init__(self, config: LongformerConfig, layer: int, memory: MemoryConfig) -> None:
        super().__init__(config, memory, Attention(config, layer, memory))
