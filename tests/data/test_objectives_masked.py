"""What is hidden as one: words and spans of words."""

import numpy as np
import pytest

from lsp.core.batch import IGNORE_INDEX
from lsp.core.seeding import stream
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.masked import masked
from lsp.data.objectives.replaced_token import replaced_token
from tests.data.rows import EOS, EVERY_ROLE, MASK, UNK, packed


def test_a_word_is_hidden_as_a_whole():
    # Two documents; the words of the first are three, two and one token long.
    row = packed([10, 200, 201, 11, 210, 12, EOS], [13, UNK, 14, 220, EOS], length=14)
    words = [[0, 1, 2], [3, 4], [5], [7], [9, 10]]
    config = ObjectiveConfig("masked", unit="whole_word", mask_probability=0.5)
    hidden_together = set()
    for seed in range(200):
        sample = masked(row, stream(seed), config, EVERY_ROLE)
        hidden = sample.labels != IGNORE_INDEX
        assert not hidden[[6, 8, 11, 12, 13]].any()
        assert all(len(set(hidden[word])) == 1 for word in words)
        hidden_together.add(tuple(bool(hidden[word[0]]) for word in words))
    assert len(hidden_together) == 2 ** len(words)


def test_spans_are_words_and_end_with_their_document():
    row = packed([10, 200, 11, 201, 202, EOS], [12, 13, UNK, 14, 203, EOS], length=14)
    words = [[0, 1], [2, 3, 4], [6], [7], [9, 10]]
    config = ObjectiveConfig("masked", unit="span", mask_probability=0.5)
    for seed in range(200):
        sample = masked(row, stream(seed), config, EVERY_ROLE)
        hidden = sample.labels != IGNORE_INDEX
        assert not hidden[[5, 8, 11, 12, 13]].any()
        assert all(len(set(hidden[word])) == 1 for word in words)
        # Half of nine tokens, and no more than ends a word.
        assert 4 <= hidden.sum() <= 6


def test_spans_have_the_lengths_of_spanbert():
    # 10,000 documents; few tokens are hidden, so that spans hardly ever meet.
    documents = [np.full(64, 10) for _ in range(500)]
    config = ObjectiveConfig("masked", unit="span", mask_probability=0.02)
    found, mixed = np.zeros(65), 0
    for seed in range(20):
        sample = masked(packed(*documents), stream(seed), config, EVERY_ROLE)
        hidden = (sample.labels != IGNORE_INDEX).reshape(500, 64)
        assert abs(hidden.mean() - 0.02) < 1e-3
        # Those that reach the end may have been cut short there.
        edges = np.diff(hidden.astype(int), prepend=0, append=0, axis=1)
        starts, stops = np.argwhere(edges == 1), np.argwhere(edges == -1)
        inside = stops[:, 1] < 64
        found += np.bincount((stops - starts)[inside, 1], minlength=65)
        # What becomes of a span becomes of all of it, unless two meet.
        for (document, start), (_, stop) in zip(starts[:50], stops[:50], strict=True):
            inputs = sample.input_ids.reshape(500, 64)[document, start:stop]
            kinds = {MASK: "mask", 10: "kept"}
            mixed += len({kinds.get(token, "random") for token in inputs.tolist()}) > 1
    assert mixed < 0.02 * 20 * 50
    lengths = np.arange(1, 11)
    expected = 0.8 ** (lengths - 1) / (0.8 ** (lengths - 1)).sum()
    assert found[11:].sum() < 0.02 * found.sum()
    found = found[1:11] / found[1:11].sum()
    assert np.abs(found - expected).max() < 0.03
    assert abs(found @ lengths - 3.8) < 0.25  # the paper's mean


def test_an_electra_generator_sees_masks_alone():
    row = packed(np.arange(5, 195), np.arange(5, 195))
    config = ObjectiveConfig("replaced_token")
    sample = replaced_token(row, stream(0), config, EVERY_ROLE)
    hidden = sample.labels != IGNORE_INDEX
    assert hidden.any()
    assert (sample.input_ids[hidden] == MASK).all()
    assert (sample.input_ids[~hidden] == row.input_ids[~hidden]).all()


@pytest.mark.parametrize("unit", ["token", "whole_word", "span"])
def test_bert_shares_over_10000_documents(unit):
    documents = [np.arange(5, 37) for _ in range(1000)]
    config = ObjectiveConfig("masked", unit=unit)
    shares = []
    for seed in range(10):
        row = packed(*documents)
        sample = masked(row, stream(seed), config, EVERY_ROLE)
        hidden = sample.labels != IGNORE_INDEX
        inputs = sample.input_ids[hidden]
        kept = inputs == row.input_ids[hidden]
        shares.append([hidden.mean(), (inputs == MASK).mean(), kept.mean()])
    share, to_mask, kept = np.mean(shares, axis=0)
    assert abs(share - 0.15) < 0.002
    assert abs(to_mask - 0.8) < 0.01
    assert abs(kept - 0.1) < 0.01
