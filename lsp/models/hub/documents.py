"""Taking packed rows apart into their documents, and putting them together again.

For what mixes tokens without an attention mask: Fourier transforms, scans, attention by blocks.
Only what has no weights is computed so, since under sharding a call of a module with weights is a
collective, and how many documents there are differs between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lsp.models.hub.attention import documents, layout_of


class Documents:
    """Where documents are in the rows of the forward pass that is going on.

    Modules that mix tokens share one of these with `masks.arguments`, which sets it before every
    forward pass; recomputation in the backward pass finds it as it was, since no other forward
    pass comes between.

    Attributes:
        segments_BL: Document numbers, 0 for padding; None before the first pass.
        positions_BL: Positions of the tokens in their documents.
        given: The documents as attention is given them.
    """

    def __init__(self) -> None:
        self.segments_BL: torch.Tensor | None = None
        self.positions_BL: torch.Tensor | None = None
        self.given: torch.Tensor | None = None

    def set(self, segments_BL: torch.Tensor, positions_BL: torch.Tensor, causal: bool) -> None:
        """Says where the documents of the next forward pass are.

        Args:
            segments_BL: Document numbers, 0 for padding.
            positions_BL: Positions of the tokens in their documents.
            causal: Whether a position sees none after itself.
        """
        self.segments_BL, self.positions_BL = segments_BL, positions_BL
        self.given = documents(segments_BL, causal)

    def follow(self, positions_BT: torch.Tensor | None) -> None:
        """Says that the next forward pass has tokens behind others that are remembered.

        Args:
            positions_BT: Of these tokens; None for no such pass.
        """
        self.segments_BL = self.given = None
        self.positions_BL = positions_BT

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """For a pass through rows of one document each, whose shape may happen to be the same."""
        own = self.segments_BL, self.positions_BL, self.given
        self.segments_BL = self.positions_BL = self.given = None
        try:
            yield
        finally:
            self.segments_BL, self.positions_BL, self.given = own

    @property
    def _counts(self) -> tuple[int, ...]:
        assert self.given is not None
        return layout_of(self.given).queries

    def fits(self, shape: torch.Size) -> bool:
        """Whether these are the documents of rows of such a shape; generation has none."""
        return self.segments_BL is not None and self.segments_BL.shape == shape[:2]

    def lengthened(self, shape: torch.Size) -> Documents | None:
        """The same in rows that are longer by padding, as some models make them; None for others.

        Args:
            shape: Of these rows.
        """
        if self.segments_BL is None or self.segments_BL.shape[0] != shape[0]:
            return None
        missing = shape[1] - self.segments_BL.shape[1]
        if missing <= 0:
            return self if missing == 0 else None
        longer = Documents()
        assert self.positions_BL is not None
        longer.set(
            F.pad(self.segments_BL, (0, missing)), F.pad(self.positions_BL, (0, missing)), False
        )
        return longer

    @property
    def alone(self) -> bool:
        """Whether every row is document 1 from its first position on, then padding, if anything."""
        assert self.segments_BL is not None
        numbers_BL = self.segments_BL.cpu()
        return bool(((numbers_BL == 0) | (numbers_BL == 1)).all()) and bool(
            (numbers_BL.diff(dim=1) <= 0).all()
        )

    @property
    def places(self) -> torch.Tensor:
        """(S, K) where the tokens of each document are in all rows, -1 behind its end."""
        assert self.given is not None
        assert self.segments_BL is not None
        first, found = 0, []
        numbers_T = self.segments_BL.cpu().flatten()
        for count in self._counts:
            if numbers_T[first]:
                found.append(torch.arange(first, first + count))
            first += count
        places_SK = nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1)
        return places_SK.to(self.segments_BL.device)

    @property
    def real(self) -> torch.Tensor:
        """(B, L) where there is no padding."""
        assert self.segments_BL is not None
        return self.segments_BL != 0

    @property
    def starts(self) -> torch.Tensor:
        """(B, L) where a run of one document, or of padding, begins."""
        assert self.segments_BL is not None
        first_B1 = torch.ones_like(self.segments_BL[:, :1], dtype=torch.bool)
        return torch.cat([first_B1, self.segments_BL.diff(dim=1) != 0], dim=1)

    def each(
        self,
        function: Callable[..., torch.Tensor],
        xs_BLX: Sequence[torch.Tensor],
        length_of: Callable[[int], int],
    ) -> torch.Tensor:
        """Computes something of every run of positions as if it were a row of its own.

        Args:
            function: Of the same tensors with (S, K, ...), runs by positions, and of `real_SK`,
                where they have a token; gives (S, K, ...).
            xs_BLX: (B, L, ...) each.
            length_of: The length K of the row that a run of so many positions gets. Runs that get
                the same are computed together.

        Returns:
            (B, L, ...).
        """
        rows, length = xs_BLX[0].shape[:2]
        runs_of_x = [x.flatten(0, 1).split(self._counts) for x in xs_BLX]
        groups: dict[int, list[int]] = {}
        for run, count in enumerate(self._counts):
            groups.setdefault(length_of(count), []).append(run)
        outs: list[torch.Tensor | None] = [None] * len(self._counts)
        for size, runs in sorted(groups.items()):
            counts = torch.tensor([self._counts[run] for run in runs])
            real_SK = (torch.arange(size) < counts[:, None]).to(xs_BLX[0].device)
            out_SKX = function(*(_rows(runs_X, runs, size) for runs_X in runs_of_x), real_SK)
            for run, out_KX in zip(runs, out_SKX.unbind(0), strict=True):
                outs[run] = out_KX[: self._counts[run]]
        return torch.cat(outs).unflatten(0, (rows, length))  # type: ignore[arg-type]

    def spaced(
        self, function: Callable[[torch.Tensor], torch.Tensor], x_BLX: torch.Tensor, space: int
    ) -> torch.Tensor:
        """Computes something of all runs one after another with zeros between them.

        For convolutions, whose weights are then used once, as under sharding they have to be.

        Args:
            function: Of (S, ...), which gives (S, ...).
            x_BLX: (B, L, ...), zero where there is padding.
            space: How many zeros.
        """
        tail = (0, 0) * (x_BLX.dim() - 2)
        runs = x_BLX.flatten(0, 1).split(self._counts)
        row_SX = function(torch.cat([F.pad(run, (*tail, 0, space)) for run in runs]))
        parts = row_SX.split([count + space for count in self._counts])
        outs = [part[:count] for part, count in zip(parts, self._counts, strict=True)]
        return torch.cat(outs).unflatten(0, x_BLX.shape[:2])


def _rows(runs_X: Sequence[torch.Tensor], runs: Sequence[int], size: int) -> torch.Tensor:
    """Some of the runs, with zeros behind them: (S, size, ...)."""
    first = runs_X[runs[0]]
    tail = (0, 0) * (first.dim() - 1)
    return torch.stack([F.pad(runs_X[n], (*tail, 0, size - len(runs_X[n]))) for n in runs])


def exact(count: int) -> int:
    """Rows without padding, for what padding would change."""
    return count


def doubled(count: int) -> int:
    """Few lengths, none of more than twice what it has to be, for what padding does not change."""
    return 1 << (count - 1).bit_length()


def replace_forward(module: nn.Module, forward: Callable[..., Any], *given: Any) -> None:
    """Has a module compute something else; its weights, their names and its hooks stay.

    Args:
        module: Any.
        forward: Called with the module, `given` and the arguments of the call.
        given: What it needs beside.
    """
    module.forward = _Replaced(forward, module, *given)  # type: ignore[method-assign,assignment]


class _Replaced:
    """A bound method that can be copied along with its module."""

    def __init__(self, forward: Callable[..., Any], *given: Any) -> None:
        self.function, self.given = forward, given

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*self.given, *args, **kwargs)
