"""Pairs of texts "[CLS] A [SEP] B [SEP]", one of each document of a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lsp.core.batch import IGNORE_INDEX
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.documents import Document, documents
from lsp.data.objectives.masked import hide
from lsp.data.objectives.sample import Row, Sample, Vocabulary

SMALLEST = 8
"""Positions that a document has at least to become a pair; so a row has L / 8 pairs at most."""

Arrange = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, int]]
"""Given A and what follows it: the first text, the second, and the label."""


def pairs(
    row: Row,
    generator: np.random.Generator,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
    arrange: Arrange,
) -> Sample:
    """Cuts each document in two at the end of a sentence, or anywhere in a text without any.

    A pair has three special tokens in the place of one eos: what then does not fit where the
    document was is left off at the end. Documents of fewer than `SMALLEST` positions stay as they
    are, without a pair.

    Returns:
        Masked tokens and, in `extra`, `token_type_ids` (L,): 1 from B to its [SEP];
        `pair_positions` (P,): where each [CLS] is, 0 for filler; `pair_labels` (P,): what
        `arrange` says, -100 for filler. P is L // 8.
    """
    length = len(row.input_ids)
    ids_L, segment_ids_L = row.input_ids.copy(), row.segment_ids.copy()
    type_ids_L = np.zeros(length, np.int64)
    positions_P = np.zeros(max(1, length // SMALLEST), np.int64)
    labels_P = np.full(len(positions_P), IGNORE_INDEX, np.int64)
    cls_id, sep_id = [vocabulary.roles["cls"]], [vocabulary.roles["sep"]]
    count = 0
    for document in documents(row, vocabulary):
        text = document.text[: document.room - 3]
        if document.room < SMALLEST or len(text) < 2:
            continue
        cut = _cut(text, generator, vocabulary)
        first, second, label = arrange(text[:cut], text[cut:])
        pair = np.concatenate([cls_id, first, sep_id, second, sep_id])
        start, stop = document.start, document.start + len(pair)
        _clear(document, ids_L, segment_ids_L, vocabulary)
        ids_L[start:stop], segment_ids_L[start:stop] = pair, document.number
        type_ids_L[start + len(first) + 2 : stop] = 1
        positions_P[count], labels_P[count] = start, label
        count += 1
    inputs_L, token_labels_L = hide(ids_L, segment_ids_L, generator, config, vocabulary)
    extra = {
        "token_type_ids": type_ids_L,
        "pair_positions": positions_P,
        "pair_labels": labels_P,
    }
    return Sample(inputs_L, token_labels_L, segment_ids_L, extra)


def begins(text: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Where sentences begin, without the first; anywhere in a text without any."""
    borders = np.flatnonzero(vocabulary.marks.sentences(text))[1:]
    return borders if len(borders) else np.arange(1, len(text))


def _cut(text: np.ndarray, generator: np.random.Generator, vocabulary: Vocabulary) -> int:
    return int(generator.choice(begins(text, vocabulary)))


def _clear(
    document: Document, ids_L: np.ndarray, segment_ids_L: np.ndarray, vocabulary: Vocabulary
) -> None:
    own = slice(document.start, document.start + len(document.ids))
    ids_L[own], segment_ids_L[own] = vocabulary.pad_id, 0
