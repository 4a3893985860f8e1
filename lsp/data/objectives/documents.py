"""The documents of a packed row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lsp.data.objectives.sample import Row, Vocabulary


@dataclass(frozen=True)
class Document:
    """One document of a row, or the piece of one that the row has.

    Attributes:
        number: Its number in the row.
        start: Its first position.
        room: Positions up to where the next document begins: its own and padding after it.
        ids: (n,) its tokens.
        text: Those without the eos at its end.
    """

    number: int
    start: int
    room: int
    ids: np.ndarray
    text: np.ndarray

    @property
    def end(self) -> np.ndarray:
        """(0 or 1,) the eos at its end."""
        return self.ids[len(self.text) :]


def documents(row: Row, vocabulary: Vocabulary) -> Iterator[Document]:
    """The documents of a row, in order."""
    ids_L, segment_ids_L = row.input_ids, row.segment_ids
    length = len(ids_L)
    starts = np.flatnonzero(np.diff(segment_ids_L, prepend=0))
    borders = [*starts.tolist(), length]
    runs = [
        (start, stop) for start, stop in itertools.pairwise(borders) if segment_ids_L[start] != 0
    ]
    nexts = [*(start for start, _ in runs[1:]), length][: len(runs)]
    for (start, stop), following in zip(runs, nexts, strict=True):
        ids = ids_L[start:stop]
        has_eos = ids[-1] == vocabulary.eos_id
        text = ids[:-1] if has_eos else ids
        yield Document(int(segment_ids_L[start]), start, following - start, ids, text)
