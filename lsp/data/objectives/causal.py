"""Predict the next token of the same document."""

from __future__ import annotations

from typing import Any

import numpy as np

from lsp.core.batch import IGNORE_INDEX


def causal(
    input_ids: np.ndarray, segment_ids: np.ndarray, *_: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of next-token prediction.

    Args:
        input_ids: (L,) tokens of a row.
        segment_ids: (L,) document numbers, 0 for padding.

    Returns:
        The inputs unchanged and (L,) labels: position t predicts token t + 1 where that belongs
        to the same document, and nothing elsewhere.
    """
    labels = np.full(input_ids.shape, IGNORE_INDEX, dtype=np.int64)
    same = (segment_ids[1:] == segment_ids[:-1]) & (segment_ids[1:] != 0)
    labels[:-1][same] = input_ids[1:][same]
    return input_ids, labels
