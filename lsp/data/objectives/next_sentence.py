"""Predict hidden tokens, and whether B is what follows A (BERT, 1810.04805, section 3.1)."""

from __future__ import annotations

import numpy as np

from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.pairs import begins, pairs
from lsp.data.objectives.sample import Row, Sample, Vocabulary

FOLLOWS, RANDOM = 0, 1
_TRIES = 10


def next_sentence(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """Half of the pairs have a B from a document of another row; see `pairs` for the rest.

    Its B is as long as the one it takes the place of, as far as that document goes. What followed
    A is not in this sample then.
    """

    def arrange(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        if generator.random() < 0.5:
            return first, second, FOLLOWS
        other = _elsewhere(row, generator, vocabulary)
        if other is None:
            return first, second, FOLLOWS
        return first, other[: len(second)], RANDOM

    return pairs(row, generator, config, vocabulary, arrange)


def _elsewhere(
    row: Row, generator: np.random.Generator, vocabulary: Vocabulary
) -> np.ndarray | None:
    """A text from the beginning of a random sentence of a random document of another row.

    None where there seems to be no other row, as in a corpus of one.
    """
    for _ in range(_TRIES):
        ids, segment_ids = row.another(generator)
        if np.array_equal(ids, row.input_ids):
            continue
        if number := int(segment_ids.max(initial=0)):
            text = ids[segment_ids == generator.integers(1, number + 1)]
            text = text[:-1] if text[-1] == vocabulary.eos_id else text
            if len(text) > 0:
                first = generator.choice(np.append(0, begins(text, vocabulary)))
                return np.array(text[first:])
    return None
