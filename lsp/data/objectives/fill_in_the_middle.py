"""Predict the next token, the middle of a document moved to its end (2207.14255, section 3)."""

from __future__ import annotations

import numpy as np

from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.causal import next_tokens
from lsp.data.objectives.documents import Document, documents
from lsp.data.objectives.sample import Row, Sample, Vocabulary

SENTINELS = 3


def fill_in_the_middle(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """Divides documents at two random places, before they are anything but documents.

    A document becomes `<prefix> P <suffix> S <middle> M` (PSM) or `<prefix> <suffix> S <middle> P
    M` (SPM, in the form that shares its sentinels with PSM: appendix D), then its eos. All of it is
    predicted. Where the three sentinels have no padding to take the place of, as many tokens
    are left off at the end of the suffix. A document that is no longer than these stays as it is.

    Args:
        row: Packed documents.
        generator: Of the choices.
        config: `fim_rate`, `spm_rate`.
        vocabulary: The sentinels.
    """
    ids_L, segment_ids_L = row.input_ids.copy(), row.segment_ids.copy()
    for document in documents(row, vocabulary):
        chance = generator.random(2)
        places = generator.random(2)
        text = document.text[: document.room - len(document.end) - SENTINELS]
        if chance[0] >= config.fim_rate or len(text) <= SENTINELS:
            continue
        prefix, middle, suffix = np.split(
            text, np.sort(np.floor(places * (len(text) + 1))).astype(int)
        )
        moved = _arranged(prefix, middle, suffix, vocabulary, spm=chance[1] < config.spm_rate)
        _write(document, np.concatenate([moved, document.end]), ids_L, segment_ids_L, vocabulary)
    return Sample(ids_L, next_tokens(ids_L, segment_ids_L), segment_ids_L)


def _arranged(
    prefix: np.ndarray,
    middle: np.ndarray,
    suffix: np.ndarray,
    vocabulary: Vocabulary,
    *,
    spm: bool,
) -> np.ndarray:
    roles = ("fim_prefix", "fim_suffix", "fim_middle")
    before, after, between = ([vocabulary.roles[role]] for role in roles)
    if spm:
        return np.concatenate([before, after, suffix, between, prefix, middle])
    return np.concatenate([before, prefix, after, suffix, between, middle])


def _write(
    document: Document,
    ids: np.ndarray,
    ids_L: np.ndarray,
    segment_ids_L: np.ndarray,
    vocabulary: Vocabulary,
) -> None:
    old = slice(document.start, document.start + len(document.ids))
    ids_L[old], segment_ids_L[old] = vocabulary.pad_id, 0
    new = slice(document.start, document.start + len(ids))
    ids_L[new], segment_ids_L[new] = ids, document.number
