"""Predict tokens in a random order of factorisation (XLNet, 1906.08237, sections 2.2 and 2.3)."""

from __future__ import annotations

import numpy as np

from lsp.core.batch import IGNORE_INDEX
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.documents import documents
from lsp.data.objectives.sample import Row, Sample, Vocabulary


def permutation(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """Predicts one token in K, in spans; all others come first in the order, so all see them.

    A document is divided into contexts of K times n tokens, and somewhere in each a span of n is
    predicted. Of 1 to `max_ngram` a length n is drawn as often as 1 / n, as the published code
    does. Special tokens are not predicted.

    Returns:
        The row as it is, `labels` (L,) with the token of each predicted position and, in `extra`,
        `permutation` (L,): its rank in the order, -1 for tokens that all see.
    """
    is_predicted_L = np.zeros(len(row.input_ids), bool)
    for document in documents(row, vocabulary):
        own = slice(document.start, document.start + len(document.text))
        is_predicted_L[own] = _spans(len(document.text), generator, config)
    is_predicted_L &= ~vocabulary.is_special[row.input_ids]
    labels_L = np.where(is_predicted_L, row.input_ids, IGNORE_INDEX).astype(np.int64)
    ranks_L = np.full(len(row.input_ids), -1, np.int64)
    ranks_L[is_predicted_L] = generator.permutation(int(is_predicted_L.sum()))
    return Sample(row.input_ids, labels_L, row.segment_ids, {"permutation": ranks_L})


def _spans(length: int, generator: np.random.Generator, config: ObjectiveConfig) -> np.ndarray:
    """(length,) which tokens are predicted; the last context may reach beyond the end."""
    most = -(-length // config.context_ratio)  # contexts, if all spans were of one token
    shares = 1 / np.arange(1, config.max_ngram + 1)
    edges = np.cumsum(shares / shares.sum())[:-1]
    chance = generator.random((2, most))
    sizes = np.searchsorted(edges, chance[0], side="right") + 1
    contexts = sizes * config.context_ratio
    firsts = np.cumsum(contexts) - contexts
    starts = firsts + np.floor(chance[1] * (contexts - sizes + 1)).astype(np.int64)
    change = np.zeros(length + 1, np.int64)
    np.add.at(change, np.minimum(starts, length), 1)
    np.add.at(change, np.minimum(starts + sizes, length), -1)
    return np.cumsum(change[:-1]) > 0
