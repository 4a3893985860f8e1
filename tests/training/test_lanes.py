"""What a model remembers goes with its lanes: through steps, stops, evaluations and files."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from lsp.checkpointing.memory import LaneMemory, read_memory
from lsp.checkpointing.snapshot import read_snapshot
from lsp.checkpointing.store import CheckpointStore
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE, INTERRUPTED
from lsp.data.batches import BatchMaker, EvaluationBatches, Share
from lsp.data.config import ObjectiveConfig
from lsp.training.config import AdamWConfig
from lsp.training.evaluation import evaluate
from tests.data.rows import VOCABULARY, StreamRows
from tests.training.loop import ROWS_PER_STEP, STREAM, poison, rows, trainer
from tests.training.remembering import MEMORY, Remembering
from tests.training.tiny import LENGTH, batch, transformer_xl

LANE_ROWS = 8  # of the stream


def fit(folder: Path, **values) -> dict[int, float]:
    """Trains over one epoch and the beginning of the next; the losses by step."""
    folder.mkdir(exist_ok=True)
    with trainer(folder, Remembering(), contiguous=True, **{"max_steps": 12, **values}) as made:
        assert made.fit() == DONE
        fit.read = made.model.read
    return {step: row["loss"] for step, row in rows(folder).items() if "loss" in row}


def test_row_by_row_is_the_text_at_once(tmp_path):
    """Each lane's rows, with memory, cost what its whole text costs in one pass."""
    with trainer(
        tmp_path, Remembering(), contiguous=True, max_steps=8, optimizer=AdamWConfig(1e-30)
    ) as made:
        steps = [made.batches.fetch(ROWS_PER_STEP * step)[0] for step in range(LANE_ROWS)]
        whole = {
            key: torch.cat([step.tensors()[key] for step in steps], dim=1)
            for key in ("input_ids", "labels")
        }
        total, count = (value.item() for value in made.model(**whole))
        made.fit()
    counts = [int(step.num_predicted) for step in steps]
    found = sum(row["loss"] * n for row, n in zip(rows(tmp_path).values(), counts, strict=True))
    assert sum(counts) == count == LENGTH * LANE_ROWS * ROWS_PER_STEP - 5  # ends of documents
    assert found == pytest.approx(total, rel=1e-6)


def test_memory_ends_with_the_epoch(tmp_path):
    fit(tmp_path, eval_every=0)
    expected = [0] + [MEMORY] * 7 + [0] + [MEMORY] * 3
    assert fit.read[:12] == expected


def test_micro_batches_remember_their_own_lanes(tmp_path):
    whole = fit(tmp_path / "4")
    for size in (1, 2):
        assert fit(tmp_path / str(size), micro_batch=size) == pytest.approx(whole, rel=1e-5)


def test_nothing_else_disturbs_a_lane(tmp_path):
    """Neither the dry run, which is given a full memory, nor evaluations."""
    whole = fit(tmp_path / "plain", eval_every=0)
    assert fit(tmp_path / "rehearsed", dry_run=True, eval_every=1) == whole
    assert fit.read[:2] == [0, MEMORY]


def test_shuffled_rows_are_read_without_memory(tmp_path):
    model = Remembering()
    with trainer(tmp_path, model) as made:
        made.fit()
        assert made.lanes.saved() is None
    assert set(model.read) == {0}


def test_evaluation_reads_lanes(tmp_path):
    with trainer(tmp_path, Remembering(), contiguous=True) as made:
        maker = made.batches.maker
        results = []
        for degree, micro_batch in ((1, 1), (1, 4), (1, 2)):
            share = Share(0, degree, ROWS_PER_STEP, micro_batch)
            made.validation = EvaluationBatches(maker, share, lanes=1)
            results.append(made.evaluate()["validation_loss"])
        batch = maker.make(range(33), [(0,)] * 33)
        parts = made.model(batch.input_ids.view(1, -1), batch.labels.view(1, -1))
        total, count = (value.item() for value in parts)
    assert results == pytest.approx([total / count] * 3, rel=1e-6)


@pytest.mark.parametrize(("step", "micro_batch"), [(3, 0), (3, 2), (8, 1)])
def test_a_step_that_is_abandoned_leaves_the_memory_before_it(tmp_path, step, micro_batch):
    whole = fit(tmp_path / "whole", micro_batch=1, eval_every=0)
    folder = tmp_path / "stopped"
    folder.mkdir()
    model, passes = Remembering(), iter(range(100))
    original = model.begin_micro_batch

    def begin(seed, first_row=0):
        if next(passes) == step * ROWS_PER_STEP + micro_batch:
            made.stop(signal.SIGTERM, None)
        original(seed, first_row)

    model.begin_micro_batch = begin
    settings = {"contiguous": True, "micro_batch": 1, "max_steps": 12, "eval_every": 0}
    with trainer(folder, model, **settings) as made:
        assert made.fit() == INTERRUPTED
        assert made.state.step == step
    snapshot = read_snapshot(CheckpointStore(folder).latest())
    memory = snapshot.memory(range(ROWS_PER_STEP))
    assert (memory is None) == (step == LANE_ROWS)
    model = Remembering()
    with trainer(folder, model, state=snapshot.state, memory=memory, **settings) as made:
        model.load_state_dict(dict(snapshot.weights))
        made.engine.load_optimizer_state(snapshot.weights, snapshot.optimizer)
        assert made.fit() == DONE
    assert {n: row["loss"] for n, row in rows(folder).items()} == whole


def test_a_skipped_step_is_remembered(tmp_path):
    """The gradients were not finite, the text was read all the same."""
    model = Remembering()
    poison(model, {3})
    with trainer(tmp_path, model, contiguous=True, eval_every=0) as made:
        made.fit()
    assert model.read[:6] == [0] + [MEMORY] * 5
    assert rows(tmp_path)[6]["nonfinite_steps"] == 1


def test_a_memory_that_is_not_finite_is_forgotten(tmp_path, capsys):
    """By all lanes, and the run goes on."""
    model = Remembering()
    original, calls = model.remembered, iter(range(100))

    def remembered():
        memory = original()
        if next(calls) == 5:
            memory["layer_0"][0, 3, 2] = torch.inf
        return memory

    model.remembered = remembered
    with trainer(tmp_path, model, contiguous=True, micro_batch=2, eval_every=0) as made:
        assert made.fit() == DONE
    assert model.read[:12] == [0, 0] + [MEMORY] * 4 + [0, 0] + [MEMORY] * 4
    assert "step 3: what the model remembered was not finite" in capsys.readouterr().err
    assert rows(tmp_path)[6]["nonfinite_steps"] == 0


def test_any_number_of_processes_finds_its_lanes(tmp_path):
    whole = {
        "layer_0": torch.arange(12 * 3 * 2.0).view(12, 3, 2),
        "half": torch.arange(12).bfloat16().view(12, 1),
        "segments": torch.arange(12).view(12, 1) % 2,
    }
    for rank in range(3):
        lanes = slice(4 * rank, 4 * rank + 4)
        memory = LaneMemory(4 * rank, {key: value[lanes] for key, value in whole.items()})
        name, write = memory.part(rank)
        write(tmp_path / name)
    for processes in (1, 2, 3, 4, 6, 12):
        size = 12 // processes
        for rank in range(processes):
            found = read_memory(tmp_path, range(rank * size, (rank + 1) * size))
            assert found.keys() == whole.keys()
            for key, value in whole.items():
                assert torch.equal(found[key], value[rank * size : (rank + 1) * size])
    for lanes in (range(8, 16), range(12, 14)):
        with pytest.raises(UserError, match=r"tokens_per_step"):
            read_memory(tmp_path, lanes)
    (tmp_path / "none").mkdir()
    assert read_memory(tmp_path / "none", range(4)) is None


@pytest.mark.parametrize("attn_type", range(4))
def test_a_memory_of_another_precision(attn_type):
    """A run may go on under another `precision`."""
    for now, then in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        model = transformer_xl(attn_type=attn_type, tgt_len=LENGTH).to(now)
        parts = batch(0).tensors()
        model(**parts)
        memory = {
            k: v.to(then) if v.is_floating_point() else v for k, v in model.remembered().items()
        }
        model.recall(memory)
        loss_sum, _ = model(**parts)
        loss_sum.backward()
        assert loss_sum.isfinite()
        assert model.remembered()["layer_0"].dtype == now


def test_an_evaluation_may_remember_more_than_training(tmp_path):
    """Row by row, with a memory of all that was before, is the text at once."""
    torch.manual_seed(0)
    model = transformer_xl(mem_len=10, clamp_len=-1, init_std=0.3, vocab_size=VOCABULARY.size)
    rows_of_text = StreamRows(STREAM, LENGTH)
    maker = BatchMaker(rows_of_text, ObjectiveConfig(), VOCABULARY, seed=0, contiguous=True)
    batches = EvaluationBatches(maker, Share(0, 1, ROWS_PER_STEP, ROWS_PER_STEP), lanes=1)

    def loss(mem_len: int) -> float:
        model.reset_memory_length(mem_len)
        return evaluate(lambda parts: model(**parts), model, batches, torch.device("cpu"), 1.0).loss

    short, long = loss(10), loss(LENGTH * len(rows_of_text))
    text = maker.make(range(33), [(0,)] * 33)
    whole = {key: value.view(1, -1) for key, value in text.tensors().items()}
    whole["segment_ids"] = 1 - (whole["segment_ids"] == 0).long()
    model.recall(None)
    with torch.no_grad():
        total, count = model(**whole)
    assert long == pytest.approx(float(total) / int(count), rel=1e-6)
    assert short != pytest.approx(long, rel=1e-4)


def test_the_stream_is_what_is_said_of_it():
    assert len(StreamRows(STREAM, LENGTH)) == LANE_ROWS * ROWS_PER_STEP + 1
