"""Write the sentences that say most of the others (Pegasus, 1912.08777, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.decoder import Part, encoder_decoder
from lsp.data.objectives.documents import documents
from lsp.data.objectives.sample import Row, Sample, Vocabulary


def gap_sentences(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """The mask takes the place of each principal sentence; the decoder predicts these in order.

    No document may fill more of the decoder than it is of the row's text, beside what those before
    it left: a sentence that is too long stays in the encoder, and the next best is taken. A
    document of one sentence stays whole.
    """
    mask_id = vocabulary.mask_id
    assert mask_id is not None

    def parts() -> Iterator[Part]:
        left = config.decoder_tokens(len(row.input_ids))
        unread = int(np.count_nonzero(row.segment_ids))
        for document in documents(row, vocabulary):
            room = left * len(document.ids) // unread - len(document.end)
            unread -= len(document.ids)
            begins = _sentences(document.text, config, vocabulary)
            chosen = principal(document.text, begins, room, config, vocabulary)
            if len(chosen) == 0:
                yield Part(document, document.ids, document.ids[:0])
                continue
            number = np.cumsum(begins) - 1
            is_chosen = np.zeros(number[-1] + 1, bool)
            is_chosen[chosen] = True
            is_gap = is_chosen[number]
            source = np.where(is_gap, mask_id, document.text)[~is_gap | begins]
            target = np.concatenate([document.text[is_gap], document.end])
            left -= len(target)
            yield Part(document, np.concatenate([source, document.end]), target)

    return encoder_decoder(row, parts(), config, vocabulary)


def _sentences(text: np.ndarray, config: ObjectiveConfig, vocabulary: Vocabulary) -> np.ndarray:
    if vocabulary.marks.shows_sentences:
        return vocabulary.marks.sentences(text)
    begins: np.ndarray = np.arange(len(text)) % config.pseudo_sentence == 0
    return begins


def principal(
    text: np.ndarray,
    begins: np.ndarray,
    room: int,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
) -> np.ndarray:
    """Numbers of the sentences with the highest ROUGE-1 F1 against the rest of their document.

    Each is scored by itself, and equal tokens count as often as they are there ("Ind-Orig"). As a
    sentence and its rest have as many tokens as the document, the F1 is the overlap times a
    constant, so the overlap is what is compared.

    Args:
        text: (n,) tokens.
        begins: (n,) which of them begin a sentence.
        room: Tokens that may be chosen at most.
        config: Which share of the sentences.
        vocabulary: Special tokens, which do not count.
    """
    number = np.cumsum(begins) - 1
    count = int(number[-1]) + 1 if len(text) else 0
    if count < 2:
        return np.zeros(0, np.int64)
    overlap = overlaps(text, number, ~vocabulary.is_special[text])
    sizes = np.bincount(number, minlength=count)
    chosen: list[int] = []
    for sentence in np.argsort(-overlap, kind="stable").tolist():
        if sizes[sentence] <= room:
            chosen.append(sentence)
            room -= int(sizes[sentence])
        if len(chosen) == max(1, round(config.gap_sentence_ratio * count)):
            break
    return np.array(chosen, np.int64)


def overlaps(text: np.ndarray, number: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(S,) tokens that each sentence has in common with all others.

    Args:
        text: (n,) tokens.
        number: (n,) the sentence that each is of.
        counts: (n,) which tokens count.
    """
    _, kind = np.unique(text[counts], return_inverse=True)
    total = np.bincount(kind)
    pair, own = np.unique(number[counts] * len(total) + kind, return_counts=True)
    sentence, kind = np.divmod(pair, max(1, len(total)))
    shared = np.minimum(own, total[kind] - own)
    return np.bincount(sentence, weights=shared, minlength=int(number[-1]) + 1)
