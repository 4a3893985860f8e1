"""Rows in memory, with documents of every kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.packing import concatenate
from lsp.data.objectives.sample import Row, Vocabulary

VOCABULARY = Vocabulary(size=260, mask_id=3, special_ids=frozenset((0, 1, 2, 3)))
PAD = 0


def row_of(ids: np.ndarray, segments: np.ndarray) -> Row:
    """A row that is alone in its split."""
    own = (ids.astype(np.int64), segments.astype(np.int64))
    return Row(*own, another=lambda _: own)


class ListRows:
    """`num_rows` rows of `length` tokens: documents of random lengths, each second row padded."""

    def __init__(self, num_rows: int, length: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._rows = [self._row(generator, length, number) for number in range(num_rows)]

    @staticmethod
    def _row(
        generator: np.random.Generator, length: int, number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        segments = np.sort(generator.integers(1, 4, length)).astype(np.int32)
        segments = np.unique(segments, return_inverse=True)[1].astype(np.int32) + 1
        ids = generator.integers(4, VOCABULARY.size, length).astype(np.uint16)
        if number % 2:
            padding = int(generator.integers(1, length - 1))
            segments[-padding:], ids[-padding:] = 0, PAD
        ids[0] = 1  # a special token inside a document
        return ids, segments

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._rows[index]


class StreamRows:
    """A stream of documents of `lengths` tokens, in rows of `length`; the last one is padded."""

    def __init__(self, lengths: Sequence[int], length: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.documents = [generator.integers(4, VOCABULARY.size, size) for size in lengths]
        self._plan = list(concatenate(lengths, length))
        self._length = length

    def __len__(self) -> int:
        return len(self._plan)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full(self._length, PAD, np.uint16)
        segments = np.zeros(self._length, np.int32)
        for number, piece in enumerate(self._plan[index], start=1):
            place = slice(piece.position, piece.position + piece.length)
            ids[place] = self.documents[piece.document][piece.start :][: piece.length]
            segments[place] = number
        return ids, segments

    def offset(self, index: int) -> int:
        return self._plan[index][0].start
