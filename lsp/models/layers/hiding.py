"""What hides keys from the queries of a block: later ones, those too far away, other documents.

Masks are added to scores, which costs less than comparing and filling. The legend is that of
`lsp.core.batch` and of `sight`.
"""

from __future__ import annotations

import torch

from lsp.models.layers.chunked_attention import OTHER_DOCUMENT
from lsp.models.layers.chunks import Workspace
from lsp.models.layers.sight import Run, Sight


class BlockWorkspace(Workspace):
    """Buffers, and what hides the corners of blocks."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.corners: dict[tuple[bool, int, int, int], torch.Tensor] = {}


class Hiding:
    """What the queries of a row do not see."""

    def __init__(self, sight: Sight, row: int, dtype: torch.dtype, work: BlockWorkspace) -> None:
        self.sight, self.dtype, self.work = sight, dtype, work
        self.code_E: torch.Tensor | None = None
        if sight.documents is not None:
            self.code_E = sight.documents[row].to(dtype) * OTHER_DOCUMENT

    def hide(self, scores: torch.Tensor, run: Run, part: tuple[int, int]) -> None:
        """Puts scores (T, K, W) of a block and a part of its keys far below 0, in place."""
        left, right = part
        count, width = run.stop - run.first, right - left
        # Key c of the part is at the distance `own + a - c` from query a.
        own = self.sight.memory + run.first - left
        if self.sight.causal and own + 1 < width:
            start = max(own + 1, 0)
            scores[:, :, start:].add_(self._corner(count, width - start, own + 1 - start, True))
        if self.sight.reach is not None and count - 1 > self.sight.reach - own:
            last = own - self.sight.reach
            stop = min(last + count - 1, width)
            scores[:, :, :stop].add_(self._corner(count, stop, last, False))
        if run.masked:
            assert self.code_E is not None
            memory = self.sight.memory
            q_code_K1 = self.code_E[memory + run.first : memory + run.stop, None]
            gap = self.work.take("weights", (1, count, width), self.dtype)
            torch.sub(q_code_K1, self.code_E[left:right], out=gap[0]).abs_()
            scores.sub_(gap)

    def silent(self, run: Run) -> torch.Tensor | None:
        """(K, 1) true for queries that are themselves not seen; None where there are none."""
        if self.code_E is None:
            return None
        memory = self.sight.memory
        return self.code_E[memory + run.first : memory + run.stop, None] < 0

    def _corner(self, count: int, width: int, shift: int, later: bool) -> torch.Tensor:
        """Far below 0 where column c - shift is past row a - 1 (`later`), or before a: (K, W)."""
        key = (later, count, width, shift)
        if key not in self.work.corners:
            query_K1 = torch.arange(count, device=self.work.device)[:, None]
            key_W = torch.arange(width, device=self.work.device) - shift
            hidden_KW = key_W >= query_K1 if later else key_W < query_K1
            zero = torch.zeros((), dtype=self.dtype, device=self.work.device)
            self.work.corners[key] = torch.where(hidden_KW, zero - OTHER_DOCUMENT, zero)
        return self.work.corners[key]


def shifted(wide: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The view of (T, K, K + W - 1) in which each row begins one place before the last: (T, K, W).

    Row a of a block has column c of its keys at the place K - 1 - a + c.
    """
    heads, count, width = shape
    strides = (count * wide.shape[-1], wide.shape[-1] - 1, 1)
    return wide.as_strided((heads, count, width), strides, wide.storage_offset() + count - 1)


def add_product(
    out: torch.Tensor, left: torch.Tensor, right: torch.Tensor, work: Workspace
) -> None:
    """Adds a product to sums that may be in a wider type."""
    if left.dtype == out.dtype:
        out.baddbmm_(left, right)
    else:
        out.add_(torch.bmm(left, right, out=work.take("product", tuple(out.shape), left.dtype)))
