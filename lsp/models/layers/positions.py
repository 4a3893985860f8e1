"""Learned and axial position embeddings (Reformer, 2001.04451, section 4 and its code)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lsp.models.layers.dropout import seeded_dropout


@torch.no_grad()
def repeat_rows(table_PD: torch.Tensor, learned: int) -> None:
    """Sets the rows from number `learned` on to those before it, over and over."""
    source_K = torch.arange(learned, len(table_PD), device=table_PD.device) % learned
    table_PD[learned:] = table_PD[source_K]


class LearnedPositions(nn.Module):
    """One learned vector per position."""

    def __init__(self, max_positions: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_positions, dim)
        self.dropout = dropout

    def forward(self, position_ids_BL: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        """Embeds positions: (B, L) to (B, L, D). Dropout only where a seed is given."""
        return seeded_dropout(self.embedding(position_ids_BL), self.dropout, seed)

    def repeat(self, learned: int) -> None:
        """Sets the positions from `learned` on to those before it, over and over."""
        repeat_rows(self.embedding.weight, learned)


class AxialTables(nn.Module):
    """One table per axis, of shape (1, .., size of the axis, .., 1, dim of the axis)."""

    def __init__(self, shape: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        for axis, (size, dim) in enumerate(zip(shape, dims, strict=True)):
            sizes = [1] * len(shape)
            sizes[axis] = size
            self.register_parameter(str(axis), nn.Parameter(torch.ones(*sizes, dim)))

    def forward(self, coordinates: Sequence[torch.Tensor]) -> torch.Tensor:
        """Looks up (B, L) coordinates, one tensor per axis: (B, L, sum of the dims)."""
        tables = [table.flatten(0, -2) for table in self.parameters()]
        return torch.cat(
            [F.embedding(c, t) for c, t in zip(coordinates, tables, strict=True)], dim=-1
        )


class AxialPositions(nn.Module):
    """Positions on a grid: the vectors of a position's row and of its column, side by side.

    Position p of a grid of (rows, columns) has row p // columns and column p % columns. Only the
    positions asked for are looked up; the table of all of them never exists.
    """

    def __init__(self, shape: Sequence[int], dims: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.weights = AxialTables(shape, dims)
        self.dropout = dropout

    def forward(self, position_ids_BL: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        """Embeds positions: (B, L) to (B, L, D).

        Dropout, only where a seed is given, is that of the published model: a whole column of the
        grid is dropped at once, in each row of the batch for itself.
        """
        coordinates: list[torch.Tensor] = []
        rest = position_ids_BL
        for size in reversed(self.shape[1:]):
            coordinates.insert(0, rest % size)
            rest = rest.div(size, rounding_mode="floor")
        out_BLD = self.weights([rest, *coordinates])
        if seed is None or self.dropout == 0.0 or not coordinates:
            return out_BLD
        columns = out_BLD.new_ones(position_ids_BL.shape[0], self.shape[1])
        keep = seeded_dropout(columns, self.dropout, seed).gather(1, coordinates[0])
        return out_BLD * keep[..., None]

    def repeat(self, learned: int) -> None:
        """Sets what the first `learned` positions have not used to what they have, axis by axis."""
        stride = math.prod(self.shape)
        for size, table in zip(self.shape, self.weights.parameters(), strict=True):
            stride //= size
            repeat_rows(table.view(size, -1), min(size, -(-learned // stride)))
