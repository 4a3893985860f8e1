"""Write a document from one that was damaged (BART, 1910.13461, section 2.2; mBART, 2001.08210)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.decoder import Part, encoder_decoder
from lsp.data.objectives.documents import documents
from lsp.data.objectives.sample import Row, Sample, Vocabulary


def denoising(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """The encoder reads each document damaged, the decoder predicts all of it.

    In this order, each as far as the configuration asks for it: sentences change places, spans
    become one mask each, tokens become the mask or are left out, the text is rotated. The eos
    stays where it is.
    """

    def parts() -> Iterator[Part]:
        for document in documents(row, vocabulary):
            source = document.text
            if len(source) > 0:
                source = _damage(source, generator, config, vocabulary)
            yield Part(document, np.concatenate([source, document.end]), document.ids)

    return encoder_decoder(row, parts(), config, vocabulary)


def _damage(
    text: np.ndarray,
    generator: np.random.Generator,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
) -> np.ndarray:
    assert vocabulary.mask_id is not None
    if config.permute_sentences:
        text = permute(text, vocabulary.marks.sentences(text), generator)
    if config.infill_rate > 0:
        text = infill(text, vocabulary.mask_id, generator, config)
    if config.token_mask_rate > 0:
        hidden = generator.random(len(text)) < config.token_mask_rate
        text = np.where(hidden, vocabulary.mask_id, text)
    if config.token_delete_rate > 0:
        text = text[generator.random(len(text)) >= config.token_delete_rate]
    if config.rotate and len(text) > 0:
        text = np.roll(text, -int(generator.integers(len(text))))
    return text


def permute(text: np.ndarray, begins: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The sentences of a text in a random order.

    Args:
        text: (n,) tokens.
        begins: (n,) which of them begin a sentence.
        generator: Of the order.
    """
    number = np.cumsum(begins) - 1
    place = generator.permutation(int(number[-1]) + 1)
    return text[np.argsort(place[number], kind="stable")]


def infill(
    text: np.ndarray, mask_id: int, generator: np.random.Generator, config: ObjectiveConfig
) -> np.ndarray:
    """One mask in the place of each span, until the share of tokens is cut out.

    Spans are drawn from a Poisson distribution and do not touch. Where one has no tokens, a mask is
    inserted, unless the text would become longer than it was.
    """
    wanted = round(config.infill_rate * len(text))
    lengths = _lengths(wanted, config.mean_span_length, generator)
    kept = len(text) - wanted
    if len(lengths) > kept + 1:  # more spans than gaps to put them into
        lengths = np.append(lengths[:kept], lengths[kept:].sum())
    gaps = np.sort(generator.choice(kept + 1, len(lengths), replace=False, shuffle=False))
    # In the text, a span begins after the kept tokens and the spans before it.
    starts = gaps + np.cumsum(lengths) - lengths
    is_cut = np.zeros(len(text) + 1, np.int64)
    np.add.at(is_cut, starts, 1)
    np.add.at(is_cut, starts + lengths, -1)
    return np.insert(text[np.cumsum(is_cut[:-1]) == 0], gaps, mask_id)


def _lengths(total: int, mean: float, generator: np.random.Generator) -> np.ndarray:
    """Lengths of spans that add up to `total`, in random order."""
    if total == 0:
        return np.zeros(0, np.int64)
    drawn = np.zeros(0, np.int64)
    while drawn.sum() < total:
        drawn = np.append(drawn, generator.poisson(mean, int(1.2 * total / mean) + 8))
    drawn = drawn[: int(np.searchsorted(np.cumsum(drawn), total)) + 1]
    drawn[-1] -= drawn.sum() - total
    empty = np.flatnonzero(drawn == 0)
    most = total - (len(drawn) - len(empty))  # tokens that masks have made room for
    if len(empty) > most:
        drawn = np.delete(drawn, empty[most:])
    return generator.permutation(drawn)
