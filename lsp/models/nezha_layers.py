"""The two blocks of a NEZHA layer: attention and feed-forward (1909.00204).

Module names are those of the published weights. Letters of shapes are in `lsp/core/batch.py`; E
stands for all heads side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lsp.models.layers.clipped_attention import clipped_attention, sinusoids
from lsp.models.layers.dropout import derive_seed
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.models.layers.post_norm import Output, PostNormLayer
from lsp.models.layers.sequential import Block
from lsp.models.layers.sight import Sight
from lsp.models.layers.tiling import tile_spans
from lsp.models.memory import MemoryConfig
from lsp.models.nezha_config import NezhaConfig


@dataclass
class Memo:
    """What a block is told for one forward pass.

    Attributes:
        sight: Which keys each query of whole rows sees.
        dropout_seed: Of every dropout mask in the block; None drops nothing.
        first: Position in its row of the first that is here.
    """

    sight: Sight
    dropout_seed: int | None
    first: int = 0

    def seed(self, *key: int) -> int | None:
        return None if self.dropout_seed is None else derive_seed(self.dropout_seed, *key)


class SelfAttention(nn.Module):
    """Projections."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x_BKD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, K, E) each: queries, keys, values."""
        return self.query(x_BKD), self.key(x_BKD), self.value(x_BKD)


class Attention(Block):
    """Attention of all heads, the sum with its input, and the norm of that.

    Attributes:
        exchange: Brings what other processes hold of a row.
    """

    def __init__(self, config: NezhaConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.exchange: Exchange = WHOLE_ROWS
        self.self = SelfAttention(config)
        self.output = Output(config.hidden_size, config)

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        stream = x_BLD.numel() * x_BLD.element_size()
        return tile_spans(x_BLD.shape[1], self.memory.tiles_for(stream, x_BLD.device.type))

    def before(self, x_BKD: torch.Tensor, memo: Memo, tile: slice) -> tuple[torch.Tensor, ...]:
        projected: tuple[torch.Tensor, ...] = self.self(x_BKD)
        return projected

    def across(self, mixed: Sequence[torch.Tensor], memo: Memo) -> torch.Tensor:
        heads = self.exchange.heads(slice(0, self.config.num_attention_heads))
        q_BNLH, k_BNLH, v_BNLH = (self.split(x_BLE) for x_BLE in self.exchange.to_heads(mixed))
        dropout_seed = memo.seed(0, heads.start)
        dropped = self.config.attention_probs_dropout_prob
        out_BNLH = clipped_attention(
            q_BNLH,
            k_BNLH,
            v_BNLH,
            self.table(q_BNLH.device),
            memo.sight,
            dropout=0.0 if dropout_seed is None else dropped,
            dropout_seed=dropout_seed,
        )
        return self.exchange.to_positions(out_BNLH.transpose(1, 2).flatten(2))

    def after(
        self, mixed_BKE: torch.Tensor | None, x_BKD: torch.Tensor, memo: Memo, tile: slice
    ) -> torch.Tensor:
        assert mixed_BKE is not None
        out_BKD: torch.Tensor = self.output(mixed_BKE, x_BKD, memo.seed(1, memo.first + tile.start))
        return out_BKD

    def table(self, device: torch.device) -> torch.Tensor:
        """Vectors of the relative positions: (P, H). Made anew, as they cost next to nothing."""
        return sinusoids(self.config.max_relative_position, self.config.head_size, device)

    def split(self, x_BLE: torch.Tensor) -> torch.Tensor:
        """Separates the heads: (B, L, E) to (B, N, L, H)."""
        return x_BLE.unflatten(-1, (-1, self.config.head_size)).transpose(1, 2)


class NezhaLayer(PostNormLayer):
    """A layer; as a block it is its feed-forward."""

    def __init__(self, config: NezhaConfig, memory: MemoryConfig) -> None:
        super().__init__(config, memory, Attention(config, memory))
