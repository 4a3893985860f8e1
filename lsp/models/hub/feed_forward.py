"""Feed-forward layers of published models, a tile of positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lsp.models.hub import masks
from lsp.models.hub.table import HubRow
from lsp.models.layers.tiling import tiled
from lsp.models.memory import MemoryConfig

WORTH = 16
"""Budgets of a tile: what a whole layer has to exceed to be cut up unasked.

A tile is computed once more in the backward pass, beside what recomputing its layer costs.
"""


def tile(row: HubRow, model: nn.Module, memory: MemoryConfig) -> None:
    """Makes the feed-forward layers of a model go through their positions in tiles.

    Where each document has a row of its own, processes have different sizes, and under sharding
    each needs as many tiles: they are cut up only if so many are asked for.
    """
    published: Any = model
    by_size = published.config.model_type not in masks.APART
    for owner, name in list(feed_forwards(row, model)):
        forward = getattr(owner, name)
        setattr(owner, name, _tiled(forward, list(owner.parameters()), memory, by_size=by_size))


def feed_forwards(row: HubRow, model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The modules that do it, each with the name of its function."""
    for module in model.modules():
        found: Any = getattr(module, row.feed_forward, None) if row.feed_forward else None
        if isinstance(found, nn.ModuleList):
            yield from ((one, "forward") for one in found)
        elif isinstance(found, nn.Module):
            yield found, "forward"
        elif found is not None:
            yield module, row.feed_forward


def _tiled(
    forward: Callable[..., torch.Tensor],
    learned: list[nn.Parameter],
    memory: MemoryConfig,
    *,
    by_size: bool,
) -> Callable[..., torch.Tensor]:
    width = max((max(p.shape) for p in learned if p.dim() > 1), default=0)

    def cut(*inputs_BLD: torch.Tensor) -> torch.Tensor:
        first_BLD = inputs_BLD[0]
        inside = first_BLD.shape[:-1].numel() * width * first_BLD.element_size()
        tiles = _tiles(inside if by_size else 0, memory, first_BLD.device.type)
        if tiles == 1:
            return forward(*inputs_BLD)
        device = first_BLD.device

        def run(inputs_BKX: torch.Tensor, seed: int | None = None) -> torch.Tensor:
            forked = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(forked, enabled=seed is not None):
                if seed is not None:  # a tile that is computed again drops the same numbers
                    torch.manual_seed(seed)
                parts = inputs_BKX.chunk(len(inputs_BLD), dim=-1)
                return forward(*(part.contiguous() for part in parts))

        seed = int(torch.randint(2**62, ())) if torch.is_grad_enabled() else None
        together_BLX = torch.cat(inputs_BLD, dim=-1)
        return tiled(run, together_BLX, tiles, seed=seed, parameters=learned)

    return cut


def _tiles(inside: int, memory: MemoryConfig, device_type: str) -> int:
    """In how many, given the bytes inside a whole layer."""
    if memory.feed_forward_tiles or memory.residual == "stored":
        return memory.feed_forward_tiles or 1
    tiles = memory.tiles_for(inside, device_type)
    return tiles if tiles > WORTH else 1
