"""Contiguous order: the lanes of the batch are streams, whoever reads them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from lsp.core.batch import IGNORE_INDEX, Batch
from lsp.data.batches import LANE_ROWS, BatchMaker, EvaluationBatches, Share, TrainingBatches
from lsp.data.config import ObjectiveConfig
from tests.data.rows import VOCABULARY, StreamRows

LENGTH, LANES = 16, 4
DOCUMENTS = [5, 40, 11, 16, 16, 3, 100, 70, 1, 9, 33]


def maker(lengths: list[int] = DOCUMENTS, objective: str = "causal") -> BatchMaker:
    rows = StreamRows(lengths, LENGTH)
    return BatchMaker(rows, ObjectiveConfig(objective), VOCABULARY, seed=5, contiguous=True)


def evaluated(share: Share, max_rows: int = 0, lanes: int = 0) -> list[Batch]:
    batches = EvaluationBatches(maker(), share, max_rows, lanes=lanes)
    return [batches[index] for index in range(len(batches))]


def test_positions_and_labels_are_those_of_the_documents():
    """Rows in reading order: each token but a document's last predicts the one after it."""
    one, rows = maker(), StreamRows(DOCUMENTS, LENGTH)
    batch = one.make(range(len(rows)), [(0,)] * len(rows))
    there = batch.segment_ids > 0
    assert batch.position_ids[there].tolist() == [p for size in DOCUMENTS for p in range(size)]
    labels = [np.append(tokens[1:], IGNORE_INDEX) for tokens in rows.documents]
    assert batch.labels[there].tolist() == np.concatenate(labels).tolist()
    assert (batch.labels[~there] == IGNORE_INDEX).all()
    goes_on = [rows.offset(row) > 0 for row in range(len(rows))]
    assert (batch.position_ids[:, 0] > 0).tolist() == goes_on
    assert 0 < sum(goes_on) < len(goes_on)


def test_masked_tokens_predict_no_other():
    batch = maker(objective="masked").make([1], [(0,)])
    ids = torch.from_numpy(StreamRows(DOCUMENTS, LENGTH).row(1)[0].astype(np.int64))
    chosen = batch.labels[0] != IGNORE_INDEX
    assert torch.equal(batch.labels[0, chosen], ids[chosen])


@pytest.mark.parametrize(("degree", "micro_batch"), [(1, 4), (1, 1), (2, 2), (2, 1), (4, 1)])
def test_each_micro_batch_reads_its_lanes(degree, micro_batch):
    share = [Share(rank, degree, LANES, micro_batch) for rank in range(degree)]
    steps = len(maker().rows) // LANES
    for rank, lane in ((rank, lane) for rank in range(degree) for lane in range(LANES // degree)):
        batches = TrainingBatches(maker(), share[rank])
        group, row = divmod(lane, micro_batch)
        read = [batches.fetch(step * LANES)[group].input_ids[row] for step in range(steps + 1)]
        first = (rank * (LANES // degree) + lane) * steps
        expected = [maker().rows.row(first + step % steps)[0] for step in range(steps + 1)]
        assert np.array_equal(torch.stack(read), np.stack(expected))
        batches.close()


@pytest.mark.parametrize("max_rows", [0, 7], ids=["all", "some"])
@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
@pytest.mark.parametrize(("degree", "micro_batch"), [(1, 1), (1, 4), (2, 2), (3, 1)])
def test_evaluation_reads_each_row_once_and_in_order(degree, micro_batch, lanes, max_rows):
    expected = dict(enumerate(evaluated(Share(0, 1, 1, 1), max_rows, lanes=1)))
    seen: list[int] = []
    for rank in range(degree):
        share = Share(rank, degree, LANES, micro_batch)
        groups = EvaluationBatches(maker(), share, max_rows, lanes=lanes).groups
        batches = evaluated(share, max_rows, lanes)
        for group, row in product(range(groups), range(len(batches[0].input_ids))):
            lane = [
                number_of(batch.rows(row, row + 1), expected) for batch in batches[group::groups]
            ]
            read = [number for number in lane if number is not None]
            assert lane == read + [None] * (len(lane) - len(read))
            assert read == list(range(read[0], read[0] + len(read))) if read else True
            seen += read
    assert sorted(seen) == list(expected)


def number_of(row: Batch, expected: dict[int, Batch]) -> int | None:
    """Which row it is; None where it only fills up."""
    if (row.labels == IGNORE_INDEX).all():
        return None
    same = (n for n, one in expected.items() if torch.equal(one.input_ids, row.input_ids))
    number = next(same)
    for key, value in expected[number].tensors().items():
        assert torch.equal(row.tensors()[key], value)
    return number


@pytest.mark.parametrize(("rows", "lanes"), [(1, 1), (31, 1), (32, 2), (64, 4), (1000, 4)])
def test_lanes_of_an_evaluation_are_long(rows, lanes):
    batches = EvaluationBatches(maker([LENGTH * rows]), Share(0, 1, LANES, LANES))
    assert len(batches) == -(-rows // lanes)
    assert rows < 2 * LANE_ROWS or len(batches) >= LANE_ROWS
