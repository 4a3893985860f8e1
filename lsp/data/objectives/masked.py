"""Predict hidden tokens from both sides (BERT, 1810.04805, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lsp.core.batch import IGNORE_INDEX
from lsp.data.config import ObjectiveConfig

if TYPE_CHECKING:
    from lsp.data.objectives import Vocabulary


def masked(
    input_ids: np.ndarray,
    segment_ids: np.ndarray,
    generator: np.random.Generator,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
) -> tuple[np.ndarray, np.ndarray]:
    """Hides a share of the tokens: most become the mask, some a random token, some stay.

    Args:
        input_ids: (L,) tokens of a row.
        segment_ids: (L,) document numbers, 0 for padding.
        generator: Source of all choices; the same state gives the same masks.
        config: The shares.
        vocabulary: The mask token and the special tokens, which are never predicted.

    Returns:
        (L,) inputs with the replacements and (L,) labels, -100 where nothing is predicted.
    """
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
    return inputs, labels
