"""What follows attention in a layer with its norms after the sums (BERT, 1810.04805).

Module names are those of published weights.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from lsp.models.activations import activation
from lsp.models.layers.dropout import seeded_dropout
from lsp.models.layers.sequential import Block
from lsp.models.layers.tiling import tile_spans
from lsp.models.memory import MemoryConfig


class LayerConfig(Protocol):
    """The published options that such a layer reads."""

    hidden_size: int
    intermediate_size: int
    hidden_act: str
    hidden_dropout_prob: float
    layer_norm_eps: float


class Output(nn.Module):
    """Projection onto the stream, and the norm of their sum."""

    def __init__(self, width: int, config: LayerConfig) -> None:
        super().__init__()
        self.dropout = config.hidden_dropout_prob
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_BKE: torch.Tensor, stream_BKD: torch.Tensor, seed: int | None) -> Any:
        return self.LayerNorm(seeded_dropout(self.dense(x_BKE), self.dropout, seed) + stream_BKD)


class Intermediate(nn.Module):
    """Holds the first linear layer of a feed-forward, under its published name."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)

    def forward(self, x_BKD: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(x_BKD))


def feed_forward_tiles(
    x_BLD: torch.Tensor, config: LayerConfig, memory: MemoryConfig
) -> list[slice]:
    """Runs of positions whose intermediate is within the budget of a tile."""
    tiles = memory.feed_forward_tiles
    if tiles == 0:
        width = max(config.intermediate_size, config.hidden_size)
        wide = x_BLD.shape[0] * x_BLD.shape[1] * width * x_BLD.element_size()
        tiles = memory.tiles_for(wide, x_BLD.device.type)
    return tile_spans(x_BLD.shape[1], tiles)


class PostNormLayer(Block):
    """A layer; as a block it is its feed-forward, whose parts the published names put here.

    What it is told for a pass has the position `first` and makes seeds with `seed`.
    """

    mixes = False

    def __init__(self, config: LayerConfig, memory: MemoryConfig, attention: Block) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.attention = attention
        self.intermediate = Intermediate(config)
        self.output = Output(config.intermediate_size, config)

    def learned(self) -> list[nn.Parameter]:
        return [*self.intermediate.parameters(), *self.output.parameters()]

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        return feed_forward_tiles(x_BLD, self.config, self.memory)

    def after(
        self, mixed_BKE: torch.Tensor | None, x_BKD: torch.Tensor, memo: Any, tile: slice
    ) -> torch.Tensor:
        out_BKD: torch.Tensor = self.output(
            self.intermediate(x_BKD), x_BKD, memo.seed(memo.first + tile.start)
        )
        return out_BKD
