"""Predict hidden tokens, and whether two texts were swapped (ALBERT, 1909.11942, section 3.1)."""

from __future__ import annotations

import numpy as np

from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.pairs import pairs
from lsp.data.objectives.sample import Row, Sample, Vocabulary

IN_ORDER, SWAPPED = 0, 1


def sentence_order(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """Half of the pairs are swapped; see `pairs` for the rest."""

    def arrange(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        if generator.random() < 0.5:
            return first, second, IN_ORDER
        return second, first, SWAPPED

    return pairs(row, generator, config, vocabulary, arrange)
