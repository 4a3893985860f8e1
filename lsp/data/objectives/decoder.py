"""Rows for an encoder and a decoder, from what each has of every document."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lsp.core.batch import IGNORE_INDEX
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.documents import Document
from lsp.data.objectives.sample import Row, Sample, Vocabulary


@dataclass(frozen=True)
class Part:
    """What a document of a row becomes.

    Attributes:
        document: The document.
        source: Tokens that the encoder reads, no more than the document has room for.
        target: Tokens that the decoder predicts; none leaves it with nothing to do.
    """

    document: Document
    source: np.ndarray
    target: np.ndarray


def encoder_decoder(
    row: Row, parts: Iterable[Part], config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """Lays out both sides.

    In the encoder every document begins where it began in the row, so chunks that it is aligned
    to are kept. In the decoder they follow on each other, each with the number that it has in the
    row: the start token and its target but the last token are read, the target is predicted.

    Returns:
        `labels` (T,) and, in `extra`, `decoder_input_ids`, `decoder_segment_ids` and
        `decoder_position_ids` (T,), which count from 0 in every document.
    """
    length, decoder_length = len(row.input_ids), config.decoder_tokens(len(row.input_ids))
    pad, start = vocabulary.pad_id, vocabulary.roles[config.decoder_start_role]
    ids_L, segment_ids_L = np.full(length, pad, np.int64), np.zeros(length, np.int64)
    inputs_T = np.full(decoder_length, pad, np.int64)
    labels_T = np.full(decoder_length, IGNORE_INDEX, np.int64)
    segment_ids_T, position_ids_T = np.zeros((2, decoder_length), np.int64)
    filled = 0
    for part in parts:
        document, size = part.document, len(part.target)
        assert len(part.source) <= document.room
        assert filled + size <= decoder_length
        own = slice(document.start, document.start + len(part.source))
        ids_L[own], segment_ids_L[own] = part.source, document.number
        if size == 0:
            continue
        own = slice(filled, filled + size)
        labels_T[own], segment_ids_T[own] = part.target, document.number
        inputs_T[filled], inputs_T[filled + 1 : filled + size] = start, part.target[:-1]
        position_ids_T[own] = np.arange(size)
        filled += size
    extra = {
        "decoder_input_ids": inputs_T,
        "decoder_segment_ids": segment_ids_T,
        "decoder_position_ids": position_ids_T,
    }
    return Sample(ids_L, labels_T, segment_ids_L, extra)
