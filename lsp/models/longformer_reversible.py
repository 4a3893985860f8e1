"""The two branches of a layer of a reversible Longformer: attention and feed-forward.

The blocks of `longformer_layers.py` put their norm after the sum, so that it cannot be undone.
Here it stands before the branch, as in the Reformer (2001.04451), and the sum goes to one of two
streams (RevNet, 1707.04585). Letters of shapes are in `lsp/core/batch.py`; E stands for the width
of a group of heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lsp.models.layers.dropout import seeded_dropout
from lsp.models.layers.linear import HeadLinear
from lsp.models.layers.post_norm import Intermediate, feed_forward_tiles
from lsp.models.layers.reversible import Branch
from lsp.models.layers.tiling import head_spans
from lsp.models.longformer_config import LongformerConfig
from lsp.models.longformer_layers import Memo, WindowAttention
from lsp.models.memory import MemoryConfig


class Projection(nn.Module):
    """Holds one linear layer, under the name that it has in published Longformers."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.dense = HeadLinear(width, hidden_size, True)

    def forward(self, x_BKE: torch.Tensor, columns: slice | None = None) -> torch.Tensor:
        return self.dense(x_BKE, columns=columns)


class ReversibleAttention(WindowAttention, Branch):
    """A norm, attention of some heads at a time, and their projection."""

    def __init__(self, config: LongformerConfig, layer: int, memory: MemoryConfig) -> None:
        super().__init__(config, layer, memory)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.output = Projection(config.hidden_size, config.hidden_size)

    def groups(self, x_BLD: torch.Tensor) -> list[slice]:
        near = self.config.global_tokens == 0 and max(self.gaps) == 1
        near = near and self.config.windows_are_near(x_BLD.shape[1])
        multiple = 1 if near else self.exchange.degree
        heads, size = self.config.num_attention_heads, self.config.head_size
        return head_spans(x_BLD, heads, size, self.memory, multiple=multiple)

    def before(
        self, x_BKD: torch.Tensor, memo: Memo, heads: slice, tile: slice
    ) -> tuple[torch.Tensor, ...]:
        return self.project(self.LayerNorm(x_BKD), memo, heads, tile)

    def across(self, mixed: Sequence[torch.Tensor], memo: Memo, heads: slice) -> torch.Tensor:
        return self.mix(mixed, memo, heads)

    def after(self, x_BKE: torch.Tensor, memo: Memo, heads: slice, tile: slice) -> torch.Tensor:
        size = self.config.head_size
        out_BKD = self.output(x_BKE, slice(heads.start * size, heads.stop * size))
        # The mask is that of the sum over all heads: the same for every group.
        seed = memo.seed(2, memo.first + tile.start)
        return seeded_dropout(out_BKD, self.config.hidden_dropout_prob, seed)


class ReversibleFeedForward(Branch):
    """A norm and two linear layers, each position by itself."""

    mixes = False

    def __init__(self, config: LongformerConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = Intermediate(config)
        self.output = Projection(config.intermediate_size, config.hidden_size)

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        return feed_forward_tiles(x_BLD, self.config, self.memory)

    def after(self, x_BKD: torch.Tensor, memo: Memo, group: None, tile: slice) -> torch.Tensor:
        out_BKD = self.output(self.intermediate(self.LayerNorm(x_BKD)))
        seed = memo.seed(memo.first + tile.start)
        return seeded_dropout(out_BKD, self.config.hidden_dropout_prob, seed)


class ReversibleLayer(nn.Module):
    """The two branches of a layer; the stack calls them, never the layer."""

    def __init__(self, config: LongformerConfig, layer: int, memory: MemoryConfig) -> None:
        super().__init__()
        self.attention = ReversibleAttention(config, layer, memory)
        self.feed_forward = ReversibleFeedForward(config, memory)
