"""How attention reaches positions of its row that are not here.

A model may be given a share of every row: a run of positions, of which there are `degree` equal
ones. Everything position-wise is then as before; attention asks the exchange for what is
elsewhere. The one in this file is for whole rows, where nothing is; the one between processes is
in `lsp.parallel.sequence`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Exchange:
    """Whole rows: every position is here.

    Attributes:
        degree: Shares of a row.
        index: Number of this share, in row order.
    """

    degree = 1
    index = 0

    def first(self, length: int) -> int:
        """Position in its row of the first of `length` positions that are here."""
        return self.index * length

    def heads(self, group: slice) -> slice:
        """The heads of a group that attend here once `to_heads` has brought their positions."""
        width = (group.stop - group.start) // self.degree
        start = group.start + self.index * width
        return slice(start, start + width)

    def whole(self, x_BL: torch.Tensor) -> torch.Tensor:
        """All positions of something that is not differentiated: (B, L / degree) to (B, L)."""
        return x_BL

    def to_heads(self, xs_BLE: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """All heads of some positions become some heads of all positions.

        Args:
            xs_BLE: (B, L / degree, E) each, alike in shape; the heads lie side by side in E.

        Returns:
            (B, L, E / degree) each.
        """
        return list(xs_BLE)

    def to_positions(self, x_BLE: torch.Tensor) -> torch.Tensor:
        """The way back: (B, L, E / degree) to (B, L / degree, E)."""
        return x_BLE

    def outer(self, xs_BLE: Sequence[torch.Tensor], before: int, after: int) -> list[torch.Tensor]:
        """The positions around those that are here, on the row's ring.

        Args:
            xs_BLE: (B, L / degree, E) each, alike in shape.
            before: How many, of those before the first.
            after: How many, of those after the last.

        Returns:
            (B, before + after, E) each; an empty list where the row is whole.
        """
        return []


WHOLE_ROWS = Exchange()
