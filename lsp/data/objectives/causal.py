"""Predict the next token of the same document."""

from __future__ import annotations

from typing import Any

import numpy as np

from lsp.core.batch import IGNORE_INDEX
from lsp.data.objectives.sample import Row, Sample


def causal(row: Row, *_: Any) -> Sample:
    """Position t predicts token t + 1 where that is of the same document, and nothing elsewhere."""
    return Sample(row.input_ids, next_tokens(row.input_ids, row.segment_ids), row.segment_ids)


def next_tokens(input_ids_L: np.ndarray, segment_ids_L: np.ndarray) -> np.ndarray:
    """(L,) the token after each, -100 at the end of a document and on padding."""
    labels_L = np.full(input_ids_L.shape, IGNORE_INDEX, dtype=np.int64)
    same = (segment_ids_L[1:] == segment_ids_L[:-1]) & (segment_ids_L[1:] != 0)
    labels_L[:-1][same] = input_ids_L[1:][same]
    return labels_L
