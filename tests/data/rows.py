"""Rows in memory, with documents of every kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from data_pipelines.packing import concatenate
from data_pipelines.token_marks import TokenMarks
from lsp.data.objectives.sample import Row, Vocabulary

VOCABULARY = Vocabulary(size=260, mask_id=3, special_ids=frozenset((0, 1, 2, 3)))
HOW_MANY = [pytest.param(500, id="500"), pytest.param(10_000, id="10000", marks=pytest.mark.slow)]
"""Rows that statistics are made of."""

PAD, EOS, UNK, MASK = 0, 1, 2, 3

STOP = 4
"""A full stop: the next token begins a sentence."""

INSIDE = range(200, 260)
"""Tokens that go on with a word; from 5 to 199 they begin one."""

CLS, SEP, QUESTION, PREFIX, MIDDLE, SUFFIX = range(260, 266)
SENTINELS = list(range(266, 306))


def _marks(size: int) -> TokenMarks:
    number = np.arange(size)
    opens, none = ~np.isin(number, INSIDE), np.zeros(size, bool)
    stop = number == STOP
    return TokenMarks(opens, none, stop, none, opens, none, ~stop)


def _every_role() -> Vocabulary:
    roles = {"pad": PAD, "eos": EOS, "unk": UNK, "mask": MASK, "cls": CLS, "sep": SEP}
    roles |= {"question": QUESTION, "fim_prefix": PREFIX, "fim_middle": MIDDLE}
    roles |= {"fim_suffix": SUFFIX}
    roles |= {f"sentinel_{number}": token for number, token in enumerate(SENTINELS)}
    size = SENTINELS[-1] + 1
    return Vocabulary(size, MASK, frozenset(roles.values()), roles, lambda: _marks(size))


EVERY_ROLE = _every_role()
"""A vocabulary with what any objective asks for; tokens of text are 4 to 259, as in the other."""


def row_of(ids: np.ndarray, segments: np.ndarray) -> Row:
    """A row that is alone in its split."""
    own = (ids.astype(np.int64), segments.astype(np.int64))
    return Row(*own, another=lambda _: own)


def packed(*documents: Sequence[int], length: int = 0, elsewhere: Sequence[int] = ()) -> Row:
    """Documents one after the other, then padding up to `length`.

    Args:
        documents: Tokens of each.
        length: Of the row; that of the documents, if that is more.
        elsewhere: The document of another row, if there is one.
    """
    ids = [token for document in documents for token in document]
    segments = [n for n, document in enumerate(documents, start=1) for _ in document]
    padding = [0] * (length - len(ids))
    own = np.array(ids + padding, np.int64), np.array(segments + padding, np.int64)
    other = np.array(elsewhere, np.int64), np.ones(len(elsewhere), np.int64)
    return Row(*own, another=lambda _: other if len(elsewhere) else own)


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
