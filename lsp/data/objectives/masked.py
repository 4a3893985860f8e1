"""Predict hidden tokens from both sides (BERT, 1810.04805, section 3.1)."""

from __future__ import annotations

import numpy as np

from lsp.core.batch import IGNORE_INDEX
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.sample import Row, Sample, Vocabulary


def masked(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """Hides a share of the tokens: most become the mask, some a random token, some stay.

    Args:
        row: What is hidden from.
        generator: Source of all choices; the same state gives the same masks.
        config: The shares.
        vocabulary: The mask token and the special tokens, which are never predicted.
    """
    input_ids, segment_ids = row.input_ids, row.segment_ids
    assert vocabulary.mask_id is not None
    special = np.isin(input_ids, list(vocabulary.special_ids))
    chosen = generator.random(input_ids.shape) < config.mask_probability
    chosen &= (segment_ids != 0) & ~special
    labels = np.where(chosen, input_ids, IGNORE_INDEX).astype(np.int64)

    how = generator.random(input_ids.shape)
    random_ids = generator.integers(0, vocabulary.size, input_ids.shape)
    inputs = input_ids.copy()
    to_mask = chosen & (how < config.replace_probability)
    to_random = chosen & ~to_mask & (how < config.replace_probability + config.random_probability)
    inputs[to_mask] = vocabulary.mask_id
    inputs[to_random] = random_ids[to_random]
    return Sample(inputs, labels, segment_ids)
