"""Predict a hidden span of every block (ProphetNet, 2001.04063, section 4.1, after MASS).

That several tokens are predicted at once is the model's business.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.decoder import Part, encoder_decoder
from lsp.data.objectives.documents import documents
from lsp.data.objectives.masked import replace
from lsp.data.objectives.sample import Row, Sample, Vocabulary


def future_ngram(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """Of each block of a document a span is hidden from the encoder, token by token as BERT does.

    The decoder predicts the spans of a document in order, and its eos. Where it is full, blocks
    keep their spans.
    """

    def parts() -> Iterator[Part]:
        left = config.decoder_tokens(len(row.input_ids))
        for document in documents(row, vocabulary):
            text, end = document.text, document.end
            is_hidden = _spans(len(text), left - len(end), generator, config)
            if not is_hidden.any():
                yield Part(document, document.ids, document.ids[:0])
                continue
            how = generator.random(len(text))
            source, _ = replace(text, is_hidden, how, generator, config, vocabulary)
            target = np.concatenate([text[is_hidden], end])
            left -= len(target)
            yield Part(document, np.concatenate([source, end]), target)

    return encoder_decoder(row, parts(), config, vocabulary)


def _spans(
    length: int, room: int, generator: np.random.Generator, config: ObjectiveConfig
) -> np.ndarray:
    """(length,) which tokens are hidden: of every block one span, as long as the share asks for.

    Parts of tokens are rounded up as often as makes the share right on average.
    """
    firsts = np.arange(0, length, config.block_length)
    blocks = np.minimum(config.block_length, length - firsts)
    chance = generator.random((2, len(firsts)))
    sizes = np.floor(config.mask_probability * blocks + chance[0]).astype(np.int64)
    sizes[np.cumsum(sizes) > room] = 0
    starts = firsts + np.floor(chance[1] * (blocks - sizes + 1)).astype(np.int64)
    edges = np.zeros(length + 1, np.int64)
    edges[starts[sizes > 0]] += 1
    np.add.at(edges, (starts + sizes)[sizes > 0], -1)
    return np.cumsum(edges[:-1]) > 0
