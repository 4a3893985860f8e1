"""Find what was hidden among the spans that are left (Splinter, 2101.00438, section 3)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lsp.core.batch import IGNORE_INDEX
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.documents import documents
from lsp.data.objectives.sample import Row, Sample, Vocabulary

Cluster = tuple[int, np.ndarray]
"""Tokens of a span that recurs, and where in the row it begins each time."""


def recurring_span(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """Of a span that recurs in a document one is left, [QUESTION] takes the place of the others.

    Spans are those of whole words, of `max_span_length` tokens at most, that are no part of a
    longer one each time, and say more than stop words or punctuation do, as far as single tokens
    show that. Clusters are drawn one by one, a span of twice the length twice as likely, and taken
    if none of their spans meets one that was taken before and there are questions left for all but
    one.

    Returns:
        The shorter documents, where they began in the row; `labels` (L,): at each question the
        position of the first token of the answer; and, in `extra`, `question_positions`,
        `start_positions` and `end_positions` (Q,): positions in the row of each question and of
        the first and last token of its answer, -100 for filler.
    """
    length = len(row.input_ids)
    ids_L, is_kept_L = row.input_ids.copy(), np.ones(length, bool)
    asked = _choose(clusters(row, config, vocabulary), length, generator, config)
    questions, answers, sizes = (np.array(part, np.int64) for part in asked)
    ids_L[questions] = vocabulary.roles["question"]
    for question, size in zip(questions, sizes, strict=True):
        is_kept_L[question + 1 : question + size] = False

    new_ids_L, new_segment_ids_L = np.full(length, vocabulary.pad_id), np.zeros(length, np.int64)
    place_L = np.zeros(length, np.int64)  # where each kept token goes
    for document in documents(row, vocabulary):
        own = np.arange(document.start, document.start + len(document.ids))
        kept = own[is_kept_L[own]]
        place_L[kept] = document.start + np.arange(len(kept))
        new_ids_L[place_L[kept]], new_segment_ids_L[place_L[kept]] = ids_L[kept], document.number

    labels_L = np.full(length, IGNORE_INDEX, np.int64)
    labels_L[place_L[questions]] = place_L[answers]
    positions_3Q = np.full((3, config.max_questions), IGNORE_INDEX, np.int64)
    positions_3Q[0, : len(questions)] = place_L[questions]
    positions_3Q[1, : len(questions)] = place_L[answers]
    positions_3Q[2, : len(questions)] = place_L[answers + sizes - 1]
    names = ("question_positions", "start_positions", "end_positions")
    extra = dict(zip(names, positions_3Q, strict=True))
    return Sample(new_ids_L, labels_L, new_segment_ids_L, extra)


def _choose(
    found: list[Cluster], length: int, generator: np.random.Generator, config: ObjectiveConfig
) -> tuple[list[int], list[int], list[int]]:
    """First tokens of the questions and of their answers, and how many tokens both have."""
    weights = np.array([size for size, _ in found], float)
    order = np.argsort(generator.exponential(size=len(found)) / weights)
    is_taken_L = np.zeros(length, bool)
    questions: list[int] = []
    answers: list[int] = []
    sizes: list[int] = []
    for size, starts in (found[number] for number in order):
        left = config.max_questions - len(questions)
        if left == 0:
            break
        if len(starts) - 1 > left or (starts[1:] - starts[:-1]).min() < size:
            continue
        covered = starts[:, None] + np.arange(size)
        if is_taken_L[covered].any():
            continue
        is_taken_L[covered] = True
        answer = int(generator.integers(len(starts)))
        hidden = np.delete(starts, answer).tolist()
        questions += hidden
        answers += [int(starts[answer])] * len(hidden)
        sizes += [size] * len(hidden)
    by_place = sorted(range(len(questions)), key=questions.__getitem__)
    return (
        [questions[i] for i in by_place],
        [answers[i] for i in by_place],
        [sizes[i] for i in by_place],
    )


def clusters(row: Row, config: ObjectiveConfig, vocabulary: Vocabulary) -> list[Cluster]:
    """The spans that recur in a document and may be asked for, longest first."""
    ids_L, marks = row.input_ids, vocabulary.marks
    is_free_L = (row.segment_ids != 0) & ~vocabulary.is_special[ids_L]
    begins_L = marks.words(ids_L)
    begins_L[1:] |= ~is_free_L[:-1]
    ends_L = np.append(begins_L[1:], True)
    ends_L[:-1] |= ~is_free_L[1:]
    content_L = np.append(0, np.cumsum(marks.content[ids_L]))
    found: list[Cluster] = []
    # The furthest end of a longer span that begins here or before.
    reach_L = np.zeros(len(ids_L), np.int64)
    recurring = list(_recurring(ids_L, row.segment_ids, is_free_L, config))
    for size, starts, cluster in reversed(recurring):
        whole = begins_L[starts] & ends_L[starts + size - 1]
        whole &= content_L[starts + size] > content_L[starts]
        starts, cluster = starts[whole], cluster[whole]
        found += ((size, members) for members in _groups(starts, cluster, size, reach_L))
        np.maximum.at(reach_L, starts, starts + size)
        reach_L = np.maximum.accumulate(reach_L)
    return found


def _groups(
    starts: np.ndarray, cluster: np.ndarray, size: int, reach_L: np.ndarray
) -> list[np.ndarray]:
    """The spans of each cluster that has several, and one that is not part of a longer one."""
    order = np.argsort(cluster, kind="stable")
    starts = starts[order]
    group = np.cumsum(np.diff(cluster[order], prepend=-1) != 0) - 1
    alone = np.bincount(group, weights=reach_L[starts] < starts + size) > 0
    wanted = (alone & (np.bincount(group) > 1))[group]
    borders = np.flatnonzero(np.diff(group[wanted])) + 1
    return np.split(starts[wanted], borders) if wanted.any() else []


def _recurring(
    ids_L: np.ndarray, segment_ids_L: np.ndarray, is_free_L: np.ndarray, config: ObjectiveConfig
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each length with where the n-grams begin that recur in a document, and which each is."""
    length = len(ids_L)
    starts = np.flatnonzero(is_free_L)
    first = segment_ids_L * (int(ids_L.max(initial=0)) + 1) + ids_L
    _, token_L = np.unique(first, return_inverse=True)
    code_L = np.where(is_free_L, token_L, -1)
    kinds = int(token_L.max(initial=0)) + 1
    for size in range(1, config.max_span_length + 1):
        if size > 1:
            # An n-gram that recurs is one that recurred without its last token, with one more.
            starts = starts[starts + size <= length]
            starts = starts[is_free_L[starts + size - 1]]
            starts = starts[segment_ids_L[starts] == segment_ids_L[starts + size - 1]]
            code = code_L[starts] * kinds + token_L[starts + size - 1]
        else:
            code = code_L[starts]
        _, which, count = np.unique(code, return_inverse=True, return_counts=True)
        recurs = count[which] > 1
        starts, which = starts[recurs], which[recurs]
        if len(starts) == 0:
            return
        code_L = np.full(length, -1, np.int64)
        code_L[starts] = which
        yield size, starts, which
