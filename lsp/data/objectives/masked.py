"""Predict hidden tokens from both sides (BERT, 1810.04805, section 3.1).

What is hidden as one is a token; a whole word, as in the whole-word models published with BERT; or
a span of words (SpanBERT, 1907.10529, section 3.1).
"""

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
        config: The shares, and the unit.
        vocabulary: The mask token and the special tokens, which are never predicted.
    """
    inputs_L, labels_L = hide(row.input_ids, row.segment_ids, generator, config, vocabulary)
    return Sample(inputs_L, labels_L, row.segment_ids)


def hide(
    input_ids_L: np.ndarray,
    segment_ids_L: np.ndarray,
    generator: np.random.Generator,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, (L,) each; of a span all tokens share what becomes of them."""
    free_L = (segment_ids_L != 0) & ~vocabulary.is_special[input_ids_L]
    if config.unit == "token":
        chosen_L = generator.random(input_ids_L.shape) < config.mask_probability
        chosen_L &= free_L
        how_L = generator.random(input_ids_L.shape)
    else:
        words = _Words.of(input_ids_L, segment_ids_L, free_L, vocabulary)
        if config.unit == "whole_word":
            hidden_W = generator.random(len(words.sizes)) < config.mask_probability
            chosen_L = hidden_W[words.number_L] & free_L
            how_L = generator.random(input_ids_L.shape)
        else:
            span_W = _spans(words, generator, config)
            chosen_L = (span_W[words.number_L] >= 0) & free_L
            how_L = generator.random(len(span_W) + 1)[span_W[words.number_L]]
    return replace(input_ids_L, chosen_L, how_L, generator, config, vocabulary)


def replace(
    input_ids_L: np.ndarray,
    chosen_L: np.ndarray,
    how_L: np.ndarray,
    generator: np.random.Generator,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, (L,) each.

    Args:
        input_ids_L: The tokens.
        chosen_L: Which are predicted.
        how_L: From 0 to 1; the lowest become the mask, the next a random token, others stay.
        generator: Of the random tokens.
        config: The shares of each.
        vocabulary: The mask, and what random tokens there are.
    """
    assert vocabulary.mask_id is not None
    labels_L = np.where(chosen_L, input_ids_L, IGNORE_INDEX).astype(np.int64)
    random_L = generator.integers(0, vocabulary.size, input_ids_L.shape)
    inputs_L = input_ids_L.copy()
    to_mask_L = chosen_L & (how_L < config.replaced)
    to_random_L = chosen_L & ~to_mask_L & (how_L < config.replaced + config.randomized)
    inputs_L[to_mask_L] = vocabulary.mask_id
    inputs_L[to_random_L] = random_L[to_random_L]
    return inputs_L, labels_L


class _Words:
    """The words of a row; a special token or padding is a word of its own, of size 0.

    Attributes:
        number_L: (L,) the word that each token is of.
        sizes: (W,) tokens of each.
        stops: (W,) the word after the last that a span from here may reach.
    """

    def __init__(self, number_L: np.ndarray, sizes: np.ndarray, stops: np.ndarray) -> None:
        self.number_L, self.sizes, self.stops = number_L, sizes, stops

    @staticmethod
    def of(
        input_ids_L: np.ndarray,
        segment_ids_L: np.ndarray,
        free_L: np.ndarray,
        vocabulary: Vocabulary,
    ) -> _Words:
        begins_L = vocabulary.marks.words(input_ids_L)
        border_L = np.diff(segment_ids_L, prepend=-1) != 0
        begins_L |= border_L | ~free_L
        begins_L[1:] |= ~free_L[:-1]
        number_L = np.cumsum(begins_L) - 1
        sizes_W = np.bincount(number_L, weights=free_L).astype(np.int64)
        first_W = np.flatnonzero(begins_L)
        # Spans end before a special token, padding or another document.
        barrier_W = border_L[first_W] | (sizes_W == 0)
        ends = np.append(np.flatnonzero(barrier_W), len(sizes_W))
        stops_W = ends[np.searchsorted(ends, np.arange(len(sizes_W)), side="right")]
        return _Words(number_L, sizes_W, stops_W)


def _spans(words: _Words, generator: np.random.Generator, config: ObjectiveConfig) -> np.ndarray:
    """(W,) the number of the span that each word is hidden in, -1 for none.

    Spans begin anywhere, and go on until the share of tokens is reached; their lengths are drawn
    from a geometric distribution that ends at `max_span_length` words.
    """
    lengths = np.arange(1, config.max_span_length + 1)
    shares = (1 - config.span_success) ** (lengths - 1)
    edges = np.cumsum(shares / shares.sum())[:-1]
    starts = np.flatnonzero(words.sizes)
    sizes, stops = words.sizes.tolist(), words.stops.tolist()
    span_W = [-1] * len(sizes)
    left = round(config.mask_probability * int(words.sizes.sum()))
    span = 0
    while left > 0:
        anchors = starts[generator.integers(0, len(starts), 256)].tolist()
        drawn = (np.searchsorted(edges, generator.random(256), side="right") + 1).tolist()
        for anchor, length in zip(anchors, drawn, strict=True):
            if span_W[anchor] >= 0:
                continue
            for word in range(anchor, min(anchor + length, stops[anchor])):
                if left > 0 and span_W[word] < 0:
                    span_W[word] = span
                    left -= sizes[word]
            span += 1
    return np.array(span_W)
