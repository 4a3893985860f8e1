"""Predict spans from the text that they are cut out of (T5, 1910.10683, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.decoder import Part, encoder_decoder
from lsp.data.objectives.documents import documents
from lsp.data.objectives.sample import Row, Sample, Vocabulary

PUBLISHED_SENTINELS = 100


def span_corruption(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """In each document a sentinel takes the place of every span that is cut out.

    The decoder predicts each span after its sentinel, then one sentinel more, and the eos of the
    document. Sentinels begin with the first in every document. Where there are too few, spans are
    fewer and longer; where the decoder is full, text stays in the encoder.
    """

    def parts() -> Iterator[Part]:
        left = config.decoder_tokens(len(row.input_ids))
        for document in documents(row, vocabulary):
            text, end = document.text, document.end
            room = left - 1 - len(end)  # the closing sentinel, the eos
            tokens, spans = _amounts(len(text), room, config, len(vocabulary.sentinels) - 1)
            if spans == 0:
                yield Part(document, document.ids, document.ids[:0])
                continue
            cut = _noise(len(text), tokens, spans, generator)
            source, target = corrupt(text, cut, vocabulary.sentinels)
            source, target = np.concatenate([source, end]), np.concatenate([target, end])
            left -= len(target)
            yield Part(document, source, target)

    return encoder_decoder(row, parts(), config, vocabulary)


def sentinels_for(config: ObjectiveConfig, sequence_length: int) -> int:
    """Sentinels that a document of `sequence_length` tokens needs, and no fewer than T5 has."""
    tokens = sequence_length * config.corruption_rate
    return max(PUBLISHED_SENTINELS, round(tokens / config.mean_span_length) + 2)


def corrupt(
    text: np.ndarray, is_cut: np.ndarray, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The text without what is cut out, and what is, with sentinels.

    Args:
        text: (n,) tokens.
        is_cut: (n,) which of them are cut out; a span is as many as follow on each other.
        sentinels: One for each span, and one more.
    """
    opens = is_cut.copy()
    opens[1:] &= ~is_cut[:-1]
    starts = np.flatnonzero(opens)
    used = sentinels[: len(starts)]
    source = text.copy()
    source[starts] = used
    # In the target each span is one sentinel further on than in what is cut out.
    target = np.empty(np.count_nonzero(is_cut) + len(starts) + 1, np.int64)
    is_sentinel = np.zeros(len(target), bool)
    is_sentinel[np.cumsum(is_cut)[starts] - 1 + np.arange(len(starts))] = True
    is_sentinel[-1] = True
    target[is_sentinel] = sentinels[: len(starts) + 1]
    target[~is_sentinel] = text[is_cut]
    return source[~is_cut | opens], target


def _amounts(length: int, room: int, config: ObjectiveConfig, most: int) -> tuple[int, int]:
    """How many tokens are cut out, in how many spans: as published, and no more than fit.

    Args:
        length: Tokens of the text.
        room: Of the tokens cut out and a sentinel for each span.
        config: Share and mean length.
        most: Sentinels that there are for spans.
    """
    if length < 2 or room < 2:
        return 0, 0
    tokens = min(max(round(length * config.corruption_rate), 1), length - 1)
    spans = max(round(tokens / config.mean_span_length), 1)
    if tokens + spans > room:
        spans = max(int(room / (1 + config.mean_span_length)), 1)
        tokens = min(tokens, room - spans)
    return tokens, min(spans, most, tokens, length - tokens)


def _noise(length: int, tokens: int, spans: int, generator: np.random.Generator) -> np.ndarray:
    """(length,) which tokens are cut out: text and spans in turn, text first, a random division
    of each into `spans` parts of one or more.
    """
    sizes = np.empty(2 * spans, np.int64)
    sizes[::2] = _division(length - tokens, spans, generator)
    sizes[1::2] = _division(tokens, spans, generator)
    return np.repeat(np.arange(2 * spans) % 2 == 1, sizes)


def _division(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """(parts,) sizes of 1 or more with the given sum, each division as likely as any other."""
    borders = np.empty(parts + 1, np.int64)
    borders[0], borders[-1] = 0, total
    if parts > 1:
        inner = generator.choice(total - 1, parts - 1, replace=False, shuffle=False)
        borders[1:-1] = np.sort(inner) + 1
    return borders[1:] - borders[:-1]
