"""Unbroken runs of tokens, put together again from the rows of a split."""

from __future__ import annotations

from typing import Any

import numpy as np

from lsp.data.batches import Rows

Tokens = np.ndarray[Any, np.dtype[np.int64]]


def read_texts(rows: Rows, num_rows: int) -> list[Tokens]:
    """The documents of the first rows, as far as they are there.

    A document that goes on in the next row is joined; where a row begins in the middle of a
    document whose beginning is elsewhere, a text begins there.

    Args:
        rows: Of a split.
        num_rows: How many are read.

    Returns:
        (tokens,) each, in the order of the rows.
    """
    texts: list[list[Tokens]] = []
    end = 0  # position in its document after the last token so far; 0 where it cannot go on
    for index in range(num_rows):
        ids, segments = rows.row(index)
        offset = rows.offset(index)
        for number in range(1, int(segments.max(initial=0)) + 1):
            piece = ids[segments == number].astype(np.int64)
            if number == 1 and 0 < offset == end:
                texts[-1].append(piece)
            else:
                texts.append([piece])
            end = len(piece) + (offset if number == 1 else 0)
        if segments[-1] == 0:
            end = 0
    return [np.concatenate(pieces) for pieces in texts]
