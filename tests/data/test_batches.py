"""How a global batch is dealt out over processes, micro-batches and sessions."""

from __future__ import annotations

import itertools

import pytest
import torch

from lsp.core.batch import IGNORE_INDEX, Batch
from lsp.data.batches import BatchMaker, EvaluationBatches, Share, TrainingBatches
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives import OBJECTIVES
from tests.data.rows import EVERY_ROLE, VOCABULARY, ListRows

ROWS_PER_STEP = 8


def maker(objective: str = "masked", num_rows: int = 13) -> BatchMaker:
    return BatchMaker(ListRows(num_rows, 32), ObjectiveConfig(name=objective), EVERY_ROLE, seed=5)


def step(objective: str, cursor: int, degree: int, micro_batch: int) -> dict[str, torch.Tensor]:
    """The rows of one step, over all processes, in global order."""
    parts: list[Batch] = []
    for rank in range(degree):
        batches = TrainingBatches(maker(objective), Share(rank, degree, ROWS_PER_STEP, micro_batch))
        parts += batches.fetch(cursor)
        batches.close()
    return {key: torch.cat([p.tensors()[key] for p in parts]) for key in parts[0].tensors()}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("degree", "micro_batch"), [(1, 1), (1, 4), (2, 1), (2, 4), (4, 2), (8, 1)]
)
def test_global_batch_does_not_depend_on_who_holds_it(objective, degree, micro_batch):
    for cursor in (0, 8, 96):  # 13 rows: every step but the first crosses an epoch
        expected = step(objective, cursor, 1, ROWS_PER_STEP)
        found = step(objective, cursor, degree, micro_batch)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_cursor_alone_finds_the_batch_again():
    share = Share(1, 2, ROWS_PER_STEP, 2)
    whole = TrainingBatches(maker(), share)
    steps = [whole.fetch(cursor) for cursor in range(0, 80, ROWS_PER_STEP)]
    resumed = TrainingBatches(maker(), share)
    for expected, cursor in zip(steps[6:], range(48, 80, ROWS_PER_STEP), strict=True):
        found = resumed.fetch(cursor)
        assert len(found) == share.accumulation == 2
        for a, b in zip(expected, found, strict=True):
            assert all(torch.equal(a.tensors()[key], b.tensors()[key]) for key in a.tensors())
    whole.close()
    resumed.close()


def test_masks_change_from_epoch_to_epoch():
    # The same row is masked elsewhere when it comes again.
    one = maker(num_rows=1)
    batches = TrainingBatches(one, Share(0, 1, 1, 1))
    labels = [batches.fetch(cursor)[0].labels for cursor in range(4)]
    batches.close()
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(labels, 2))


def test_next_step_is_ready_before_it_is_asked_for():
    batches = TrainingBatches(maker(), Share(0, 1, ROWS_PER_STEP, 4))
    first = batches.fetch(0)
    assert batches.fetch(0) is first  # asked for again, it is not made again
    cursor, future = list(batches._made.items())[-1]
    assert cursor == ROWS_PER_STEP
    assert batches.fetch(cursor) is future.result()
    # A cursor that was not foreseen is made at once.
    again = batches.fetch(0)
    assert torch.equal(again[0].labels, first[0].labels)
    batches.close()


def test_what_fails_in_the_thread_is_raised_here():
    class Broken(ListRows):
        def row(self, index):
            raise OSError("the disk is gone")

    broken = BatchMaker(Broken(4, 32), ObjectiveConfig(), VOCABULARY, seed=0)
    batches = TrainingBatches(broken, Share(0, 1, 2, 1))
    with pytest.raises(OSError, match="disk is gone"):
        batches.fetch(0)
    batches.close()


@pytest.mark.parametrize("max_rows", [0, 5, 7, 100], ids=lambda n: f"max-rows-{n}")
@pytest.mark.parametrize(("degree", "micro_batch"), [(1, 1), (1, 4), (2, 1), (2, 4), (4, 2)])
def test_each_validation_row_counts_once(degree, micro_batch, max_rows):
    wanted = min(max_rows, 13) if max_rows else 13
    alone = EvaluationBatches(maker(), Share(0, 1, ROWS_PER_STEP, 1), max_rows)
    expected = {i: alone[i] for i in range(len(alone))}
    assert len(expected) == wanted
    shares = [Share(rank, degree, ROWS_PER_STEP, micro_batch) for rank in range(degree)]
    dealt = [EvaluationBatches(maker(), share, max_rows) for share in shares]
    assert len({len(batches) for batches in dealt}) == 1  # all take part in every collective
    seen = 0
    for index, batches in itertools.product(range(len(dealt[0])), dealt):
        batch = batches[index]
        assert len(batch.input_ids) == min(micro_batch, -(-wanted // degree))
        for row in range(len(batch.input_ids)):
            if (batch.labels[row] == IGNORE_INDEX).all():
                continue
            match = next(
                e for e in expected.values() if torch.equal(e.labels[0], batch.labels[row])
            )
            assert torch.equal(match.input_ids[0], batch.input_ids[row])
            seen += 1
    assert seen == sum(int(e.num_predicted) > 0 for e in expected.values())


def test_evaluation_ends():
    batches = EvaluationBatches(maker(), Share(0, 2, ROWS_PER_STEP, 4))
    with pytest.raises(IndexError):
        batches[len(batches)]
