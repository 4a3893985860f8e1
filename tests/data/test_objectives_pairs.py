"""Pairs of texts: next sentence and sentence order."""

import numpy as np
import pytest

from lsp.core.batch import IGNORE_INDEX
from lsp.core.seeding import stream
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.next_sentence import next_sentence
from lsp.data.objectives.sentence_order import sentence_order
from tests.data.rows import CLS, EOS, EVERY_ROLE, HOW_MANY, MASK, PAD, SEP, STOP, packed

NEVER = 1e-9
MAKE = {"next_sentence": next_sentence, "sentence_order": sentence_order}


def config(name, mask_probability=NEVER):
    return ObjectiveConfig(name, mask_probability=mask_probability)


def outcomes(name, row):
    """All (tokens of the row, labels of its pairs) that there are."""
    found = set()
    for seed in range(60):
        sample = MAKE[name](row, stream(seed), config(name), EVERY_ROLE)
        labels = sample.extra["pair_labels"]
        found.add((tuple(sample.input_ids.tolist()), tuple(labels[labels >= 0].tolist())))
    return found


def test_a_swapped_pair():
    # One document of two sentences, which becomes as long as there is room.
    row = packed([10, 11, STOP, 12, 13, EOS], length=9)
    a, b = [10, 11, STOP], [12, 13]
    assert outcomes("sentence_order", row) == {
        ((CLS, *a, SEP, *b, SEP, PAD), (0,)),
        ((CLS, *b, SEP, *a, SEP, PAD), (1,)),
    }


def test_what_follows_and_what_is_from_elsewhere():
    row = packed([10, 11, STOP, 12, 13, EOS], length=9, elsewhere=[20, STOP, 21, 22, 23, EOS])
    a = [10, 11, STOP]
    # A text from elsewhere begins with a sentence, and is no longer than the one it stands for.
    assert outcomes("next_sentence", row) == {
        ((CLS, *a, SEP, 12, 13, SEP, PAD), (0,)),
        ((CLS, *a, SEP, 20, STOP, SEP, PAD), (1,)),
        ((CLS, *a, SEP, 21, 22, SEP, PAD), (1,)),
    }


def test_without_another_row_all_texts_follow():
    row = packed([10, 11, STOP, 12, 13, EOS], length=9)
    assert outcomes("next_sentence", row) == {((CLS, 10, 11, STOP, SEP, 12, 13, SEP, PAD), (0,))}


def test_documents_of_a_row():
    # The first fills its place, so its end makes room; the second is too short for a pair.
    first, second, third = [*range(10, 18), EOS], [30, 31, EOS], [40, STOP, 41, 42, 43, 44, 45, EOS]
    row = packed(first, second, third, length=24)
    sample = sentence_order(row, stream(0), config("sentence_order"), EVERY_ROLE)
    assert sample.segment_ids.tolist() == [1] * 9 + [2] * 3 + [3] * 10 + [0] * 2
    ids = sample.input_ids
    assert sorted(ids[:9].tolist()) == sorted([CLS, SEP, SEP, *range(10, 16)])
    assert ids[9:12].tolist() == second
    assert sorted(ids[12:22].tolist()) == sorted([CLS, SEP, SEP, *third[:-1]])
    assert sample.extra["pair_positions"].tolist() == [0, 12, 0]
    assert (sample.extra["pair_labels"] >= 0).tolist() == [True, True, False]
    types = sample.extra["token_type_ids"]
    for start, stop in ((0, 9), (12, 22)):
        cut = start + ids[start:stop].tolist().index(SEP) + 1
        assert types[start:stop].tolist() == [0] * (cut - start) + [1] * (stop - cut)
    assert not types[9:12].any()
    assert not types[22:].any()


@pytest.mark.parametrize("rows", HOW_MANY)
@pytest.mark.parametrize("name", MAKE)
def test_statistics(name, rows):
    generator = np.random.default_rng(0)
    texts = generator.integers(5, 200, (16, 40))
    texts[:, 9::10] = STOP
    labels, cuts, hidden, tokens = [], [], 0, 0
    for seed in range(rows):
        row = packed([*texts[seed % 16], EOS], length=48, elsewhere=[*texts[(seed + 1) % 16], EOS])
        sample = MAKE[name](row, stream(seed), config(name, 0.15), EVERY_ROLE)
        labels.append(sample.extra["pair_labels"][0])
        cuts.append(int(sample.extra["token_type_ids"].argmax()))
        predicted = sample.labels != IGNORE_INDEX
        assert not EVERY_ROLE.is_special[sample.labels[predicted]].any()
        hidden += predicted.sum()
        tokens += (sample.segment_ids != 0).sum() - 3
        assert sample.input_ids[0] == CLS
    near = 1.5 / rows**0.5  # three times the deviation of a share of one half
    assert abs(np.mean(labels) - 0.5) < near
    assert abs(hidden / tokens - 0.15) < near / 4
    # A ends with one of its three sentences as often as with another; or with B's, swapped.
    where, count = np.unique(cuts, return_counts=True)
    assert where.tolist() == [12, 22, 32]
    assert np.abs(count / rows - 1 / 3).max() < near
    assert MASK in sample.input_ids
