"""Objectives that change the order of tokens, or ask where they were."""

import numpy as np
import pytest

from lsp.core.batch import IGNORE_INDEX
from lsp.core.seeding import stream
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.fill_in_the_middle import fill_in_the_middle
from lsp.data.objectives.permutation import permutation
from lsp.data.objectives.recurring_span import clusters, recurring_span
from tests.data.rows import (
    EOS,
    EVERY_ROLE,
    HOW_MANY,
    MIDDLE,
    PAD,
    PREFIX,
    QUESTION,
    STOP,
    SUFFIX,
    UNK,
    packed,
)

NO = IGNORE_INDEX

# --- permutation ---------------------------------------------------------------------------------


def sees(ranks):
    """(L, L) whether i sees j, as the paper has it: what all see, and what comes earlier."""
    return (ranks[None, :] < 0) | (ranks[None, :] < ranks[:, None])


def test_each_predicted_token_sees_those_before_it_in_the_order():
    row = packed([*range(10, 40), UNK, *range(41, 70), EOS], [*range(70, 90), EOS], length=96)
    sample = permutation(row, stream(0), ObjectiveConfig("permutation"), EVERY_ROLE)
    ranks = sample.extra["permutation"]
    predicted = sample.labels != NO
    assert (sample.input_ids == row.input_ids).all()
    assert (sample.labels[predicted] == row.input_ids[predicted]).all()
    assert sorted(ranks[predicted].tolist()) == list(range(predicted.sum()))
    assert (ranks[~predicted] == -1).all()
    assert not predicted[EVERY_ROLE.is_special[row.input_ids]].any()
    visible = sees(ranks)
    # The first in the order sees no other that is predicted, the last sees all but itself.
    count = predicted.sum()
    assert sorted(visible[predicted][:, predicted].sum(1).tolist()) == list(range(count))
    assert visible[:, ~predicted].all()
    assert not visible.diagonal()[predicted].any()


@pytest.mark.parametrize("rows", HOW_MANY)
def test_one_token_in_six_and_every_order(rows):
    config = ObjectiveConfig("permutation")
    row = packed([*np.arange(120) % 190 + 10])
    share, earlier, lengths = 0, np.zeros(2), np.zeros(32)
    for seed in range(rows):
        sample = permutation(row, stream(seed), config, EVERY_ROLE)
        predicted = sample.labels != NO
        share += predicted.mean() / rows
        ranks = sample.extra["permutation"][predicted]
        earlier += [(ranks[:-1] < ranks[1:]).sum(), len(ranks) - 1]
        edges = np.flatnonzero(np.diff(predicted.astype(int), prepend=0, append=0))
        lengths += np.bincount(edges[1::2] - edges[::2], minlength=32)
    near = 1.5 / rows**0.5
    assert abs(share - 1 / 6) < near / 10
    assert abs(earlier[0] / earlier[1] - 0.5) < near / 4
    # Lengths 1 to 5 as often as 1, 1/2, … 1/5; a few spans meet, or end with the document.
    expected = 1 / np.arange(1, 6) / (1 / np.arange(1, 6)).sum()
    assert np.abs(lengths[1:6] / lengths.sum() - expected).max() < 0.03 + near / 4
    assert lengths[6:].sum() / lengths.sum() < 0.06


# --- fill in the middle --------------------------------------------------------------------------


def taken_apart(ids):
    """Prefix, middle, suffix and whether the suffix came first; None for a text as it was."""
    ids = [token for token in ids if token != EOS]
    if PREFIX not in ids:
        return None
    assert ids[0] == PREFIX
    after, between = ids.index(SUFFIX), ids.index(MIDDLE)
    assert 1 <= after < between
    return ids[1:after], ids[after + 1 : between], ids[between + 1 :]


@pytest.mark.parametrize("spm", [0.0, 1.0])
def test_all_divisions_of_a_text(spm):
    # Four tokens, and room for three sentinels more: fifteen divisions, told apart by their parts.
    text = [10, 11, 12, 13]
    config = ObjectiveConfig("fill_in_the_middle", fim_rate=1.0, spm_rate=spm)
    found = set()
    for seed in range(400):
        row = packed([*text, EOS], length=8)
        sample = fill_in_the_middle(row, stream(seed), config, EVERY_ROLE)
        ids = sample.input_ids.tolist()
        assert ids[7] == EOS
        assert sample.labels.tolist() == [*ids[1:], NO]
        prefix, suffix, rest = taken_apart(ids)
        if spm:  # <prefix> <suffix> S <middle> P M
            assert prefix == []
            whole = rest + suffix
        else:  # <prefix> P <suffix> S <middle> M
            whole = prefix + rest + suffix
        assert whole == text
        found.add(tuple(ids))
    # P and M of SPM are not told apart: what counts is where the suffix begins.
    assert len(found) == (5 if spm else 15)


def test_sentinels_take_the_room_of_the_end():
    config = ObjectiveConfig("fill_in_the_middle", fim_rate=1.0, spm_rate=0.0)
    row = packed([*range(10, 20), EOS], [20, 21, EOS], [*range(30, 38)], length=26)
    sample = fill_in_the_middle(row, stream(1), config, EVERY_ROLE)
    assert sample.segment_ids.tolist() == [1] * 11 + [2] * 3 + [3] * 11 + [0]
    prefix, suffix, middle = taken_apart(sample.input_ids[:11].tolist())
    assert prefix + middle + suffix == list(range(10, 17))
    assert sample.input_ids[10] == EOS
    assert sample.input_ids[11:14].tolist() == [20, 21, EOS]  # as it was
    prefix, suffix, middle = taken_apart(sample.input_ids[14:25].tolist())
    assert prefix + middle + suffix == list(range(30, 38))
    assert (sample.labels[[10, 13, 24, 25]] == NO).all()


@pytest.mark.parametrize("rows", HOW_MANY)
def test_shares_of_documents_and_forms(rows):
    config = ObjectiveConfig("fill_in_the_middle", fim_rate=0.9)
    kinds, middles = [], []
    for seed in range(rows):
        row = packed([*range(10, 60), EOS], length=64)
        sample = fill_in_the_middle(row, stream(seed), config, EVERY_ROLE)
        parts = taken_apart(sample.input_ids[sample.segment_ids == 1].tolist())
        if parts is None:
            kinds.append("plain")
            assert sample.input_ids.tolist() == row.input_ids.tolist()
            continue
        prefix, _, rest = parts
        kinds.append("psm" if prefix else "spm")
        if prefix:
            middles.append(len(rest))
    near = 1.5 / rows**0.5
    assert abs(kinds.count("plain") / rows - 0.1) < near
    # One PSM in twenty-six has an empty prefix, and looks like SPM.
    assert abs(kinds.count("psm") / rows - 0.45 * 25 / 26) < near
    assert abs(np.mean(middles) / 50 - 1 / 3) < near


# --- recurring spans -----------------------------------------------------------------------------


def places(row, **values):
    found = clusters(row, ObjectiveConfig("recurring_span", **values), EVERY_ROLE)
    return {(size, tuple(starts.tolist())) for size, starts in found}


def test_spans_that_recur():
    # "10 11" is there three times, "20 21 22" twice; of their parts "11" alone once more.
    row = packed([10, 11, 30, 20, 21, 22, 10, 11, 31, 20, 21, 22, 11, 32, 10, 11, 33, EOS])
    assert places(row) == {(2, (0, 6, 14)), (3, (3, 9)), (1, (1, 7, 12, 15))}
    # No longer than is allowed, and then as many as there are.
    assert places(row, max_span_length=2) == {
        (2, (0, 6, 14)), (2, (3, 9)), (2, (4, 10)), (1, (1, 7, 12, 15)),
    }  # fmt: skip


def test_spans_are_whole_words_of_one_document():
    # 200 goes on with the word before: "10" is not the word "10 200", nor "200" a word.
    row = packed([10, 200, 30, 10, 200, 31, 10, 32, EOS], [30, 31, EOS], [STOP, 5, STOP, 6, EOS])
    assert places(row) == {(2, (0, 3))}


def test_a_question_takes_the_place_of_all_but_one():
    document = [10, 11, 30, 31, 10, 11, 32, 10, 11, EOS]
    row = packed(document, [40, 41, EOS], length=16)
    config = ObjectiveConfig("recurring_span", max_questions=4)
    found = set()
    for seed in range(40):
        sample = recurring_span(row, stream(seed), config, EVERY_ROLE)
        ids = sample.input_ids.tolist()
        assert sample.segment_ids.tolist() == [1] * 8 + [0, 0] + [2] * 3 + [0] * 3
        assert ids[10:13] == [40, 41, EOS]
        assert [ids[8], ids[9], *ids[13:]] == [PAD] * 5
        asked = [sample.extra[n].tolist() for n in ("question_positions", "start_positions")]
        ends = sample.extra["end_positions"].tolist()
        questions = [place for place, token in enumerate(ids) if token == QUESTION]
        start = ids.index(10)
        assert asked == [[*questions, NO, NO], [start, start, NO, NO]]
        assert ends == [start + 1, start + 1, NO, NO]
        assert ids[start : start + 2] == [10, 11]
        labels = [start if place in questions else NO for place in range(16)]
        assert sample.labels.tolist() == labels
        found.add(tuple(ids[:8]))
    q = QUESTION
    assert found == {
        (10, 11, 30, 31, q, 32, q, EOS),
        (q, 30, 31, 10, 11, 32, q, EOS),
        (q, 30, 31, q, 32, 10, 11, EOS),
    }


def test_a_cluster_is_asked_for_as_a_whole_or_not_at_all():
    row = packed([10, 30, 10, 31, 10, 32, 11, 33, 11, EOS])
    config = ObjectiveConfig("recurring_span", max_questions=1)
    for seed in range(20):
        sample = recurring_span(row, stream(seed), config, EVERY_ROLE)
        ids = sample.input_ids.tolist()
        assert (ids.count(10), ids.count(11), ids.count(QUESTION)) == (3, 1, 1)


@pytest.mark.parametrize("rows", HOW_MANY)
def test_documents_come_back_from_their_answers(rows):
    generator = np.random.default_rng(0)
    config = ObjectiveConfig("recurring_span", max_questions=8)
    asked, firsts = 0, []
    for seed in range(rows):
        documents = [[*generator.integers(5, 30, 24), EOS], [*generator.integers(5, 30, 20)]]
        row = packed(*documents, length=48)
        sample = recurring_span(row, stream(seed), config, EVERY_ROLE)
        extra, ids = sample.extra, sample.input_ids.tolist()
        spans = {}
        for question, start, end in zip(
            *(extra[f"{n}_positions"].tolist() for n in ("question", "start", "end")), strict=True
        ):
            if question == NO:
                continue
            assert ids[question] == QUESTION
            assert sample.labels[question] == start
            assert sample.segment_ids[question] == sample.segment_ids[start]
            span = ids[start : end + 1]
            assert QUESTION not in span
            spans[question] = span
            firsts.append(start < question)
        assert ids.count(QUESTION) == len(spans) == (sample.labels != NO).sum() <= 8
        asked += len(spans)
        for number, document in enumerate(documents, start=1):
            own = np.flatnonzero(sample.segment_ids == number)
            whole = [token for place in own for token in spans.get(int(place), [ids[place]])]
            assert whole == list(document)
            # What was asked for is there once.
            for place in own:
                if int(place) in spans and len(spans[int(place)]) == 1:
                    assert [ids[p] for p in own].count(spans[int(place)][0]) == 1
    assert asked / rows > 6
    assert abs(np.mean(firsts) - 0.5) < 1.5 / rows**0.5
