"""Documents put together again from rows."""

import numpy as np
import pytest

from lsp.evaluation.texts import read_texts


class Rows:
    """Rows of 8 tokens, given as pieces (first token, length); -1 is padding."""

    def __init__(self, *rows, offsets):
        self.rows, self.offsets = rows, offsets

    def __len__(self):
        return len(self.rows)

    def row(self, index):
        ids, segments, number = np.zeros(8, np.uint16), np.zeros(8, np.int32), 0
        place = 0
        for first, length in self.rows[index]:
            if first >= 0:
                number += 1
                ids[place : place + length] = np.arange(first, first + length)
                segments[place : place + length] = number
            place += length
        return ids, segments

    def offset(self, index):
        return self.offsets[index]


@pytest.mark.parametrize(
    ("rows", "offsets", "texts"),
    [
        ([[(10, 8)], [(18, 8)], [(26, 3), (50, 5)]], [0, 8, 16], [(10, 19), (50, 5)]),
        ([[(10, 3), (20, 5)], [(25, 8)], [(33, 2)]], [0, 5, 13], [(10, 3), (20, 15)]),
        # Where the document of a row began elsewhere, or the row before ended in padding.
        ([[(10, 8)], [(70, 8)]], [0, 0], [(10, 8), (70, 8)]),
        ([[(10, 8)], [(70, 8)]], [0, 16], [(10, 8), (70, 8)]),
        ([[(10, 6), (-1, 2)], [(70, 8)]], [0, 6], [(10, 6), (70, 8)]),
        ([[(-1, 8)], [(70, 8)]], [0, 8], [(70, 8)]),
        ([[(30, 8)], [(38, 8)]], [24, 32], [(30, 16)]),
    ],
    ids=["one", "several", "new", "elsewhere", "padded", "empty", "from the middle"],
)
def test_texts(rows, offsets, texts):
    found = read_texts(Rows(*rows, offsets=offsets), len(rows))
    assert [(int(text[0]), len(text)) for text in found] == texts
    for text in found:
        assert (np.diff(text) == 1).all()


def test_only_the_first_rows():
    rows = Rows([(10, 8)], [(18, 8)], offsets=[0, 8])
    assert [len(text) for text in read_texts(rows, 1)] == [8]
