"""The loop: one loss per step, skipped steps, divergence, evaluation."""

from __future__ import annotations

import math
import signal

import pytest
import torch

from lsp.checkpointing.store import CheckpointStore, read_state, read_weights
from lsp.core.exit_codes import DIVERGED, DONE
from lsp.training.config import AdafactorConfig, AdamWConfig, MuonConfig
from lsp.training.signals import StopRequest
from tests.data.rows import VOCABULARY
from tests.training.loop import ROWS_PER_STEP, poison, rows, trainer
from tests.training.tiny import LENGTH, reformer


def weights(folder):
    return read_weights(CheckpointStore(folder).latest())


def test_loss_is_the_mean_over_all_predicted_tokens(tmp_path):
    """Rows differ widely in how many tokens they predict: a mean of means would show."""
    for micro_batch in (1, 2, 4):
        folder = tmp_path / str(micro_batch)
        folder.mkdir()
        with trainer(folder, micro_batch=micro_batch) as made:
            counts = [int(b.rows(0, 1).num_predicted) for b in made.batches.fetch(0)]
            assert micro_batch > 1 or max(counts) > 1.5 * min(counts)
            assert made.fit() == DONE
    whole, halves, ones = rows(tmp_path / "4"), rows(tmp_path / "2"), rows(tmp_path / "1")
    for parts in (halves, ones):
        for step, row in whole.items():
            for key in {"loss", "gradient_norm", "validation_loss"} & row.keys():
                assert parts[step][key] == pytest.approx(row[key], rel=1e-5)
            assert parts[step]["padding_share"] == row["padding_share"] > 0
    expected = weights(tmp_path / "4")
    for name, value in weights(tmp_path / "1").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-5)


def test_first_step_is_that_of_plain_autograd(tmp_path):
    with trainer(tmp_path, micro_batch=1, max_steps=1, gradient_clip=0.0) as made:
        model = made.model
        model.train()
        total, count = torch.zeros(()), 0
        for number, batch in enumerate(made.batches.fetch(0)):
            model.begin_micro_batch(made.model_seed(), number)
            loss_sum, predicted = model(**batch.tensors())
            total, count = total + loss_sum, count + int(predicted)
        (total / count).backward()
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad()
        assert made.fit() == DONE
    assert rows(tmp_path)[1]["loss"] == pytest.approx(float(total.detach()) / count, rel=1e-6)
    assert rows(tmp_path)[1]["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_clipping_bounds_the_update(tmp_path):
    """AdamW's first update does not depend on the norm, but its state does."""
    norms = {}
    for clip in (0.0, 0.01):
        folder = tmp_path / str(clip)
        folder.mkdir()
        with trainer(folder, max_steps=1, gradient_clip=clip) as made:
            made.fit()
            state = dict(made.engine.optimizer_state())
        first = torch.cat([v.flatten() for k, v in state.items() if k.endswith("/exp_avg")])
        norms[clip] = float(first.norm()) / 0.1  # exp_avg is (1 - beta1) times the gradient
    logged = rows(tmp_path / "0.01")[1]["gradient_norm"]
    assert logged == rows(tmp_path / "0.0")[1]["gradient_norm"] > 0.01  # before clipping
    assert norms[0.0] == pytest.approx(logged, rel=1e-4)
    assert norms[0.01] == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize(
    "optimizer", [AdamWConfig(), MuonConfig(), AdafactorConfig()], ids=lambda o: type(o).__name__
)
def test_nonfinite_step_is_skipped_and_counted(tmp_path, optimizer, value):
    model = reformer(vocab_size=VOCABULARY.size)
    poison(model, {3}, value)
    with trainer(tmp_path, model, optimizer=optimizer, eval_every=0) as made:
        before: dict[str, torch.Tensor] = {}
        original = made.after_step

        def after_step(result):
            if made.state.step == 2:
                before.update({k: v.clone() for k, v in made.engine.weights()})
                before.update({k: v.clone() for k, v in made.engine.optimizer_state()})
            if made.state.step == 3:
                now = dict(made.engine.weights()) | dict(made.engine.optimizer_state())
                assert not result.applied
                assert all(torch.equal(now[key], kept) for key, kept in before.items())
            original(result)

        made.after_step = after_step
        assert made.fit() == DONE
        assert before
    logged = rows(tmp_path)
    assert [logged[n]["nonfinite_steps"] for n in range(1, 7)] == [0, 0, 1, 1, 1, 1]
    assert logged[3]["loss"] is None
    assert logged[3]["gradient_norm"] is None
    assert all(math.isfinite(logged[n]["loss"]) for n in (1, 2, 4, 5, 6))
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    assert read_state(CheckpointStore(tmp_path).latest())["nonfinite"] == 1


def test_a_row_leaves_out_the_step_that_had_no_loss(tmp_path):
    model = reformer(vocab_size=VOCABULARY.size)
    poison(model, {2})
    with trainer(tmp_path, model, max_steps=3, log_every=3, eval_every=0) as made:
        made.fit()
    assert math.isfinite(rows(tmp_path)[3]["loss"])
    assert rows(tmp_path)[3]["nonfinite_steps"] == 1


def test_divergence_ends_the_run_with_the_reason(tmp_path, capsys):
    model = reformer(vocab_size=VOCABULARY.size)
    poison(model, {2, 4, 5, 6, 7, 8})
    with trainer(tmp_path, model, max_steps=20, max_nonfinite=3, eval_every=0) as made:
        assert made.fit() == DIVERGED == 3
    assert made.state.step == 6
    assert made.state.nonfinite == 4
    error = capsys.readouterr().err
    assert "3 steps in a row had a non-finite loss or gradient" in error
    assert "trainer.max_nonfinite=3; the run stops. Try a lower optimizer.learning_rate" in error
    # What is saved is good, and one more bad step does not count as three.
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize("residual", ["reversible", "recomputed", "stored"])
def test_bf16_learns(tmp_path, residual):
    model = reformer(residual, vocab_size=VOCABULARY.size)
    with trainer(tmp_path, model, precision="bf16", max_steps=8) as made:
        assert made.fit() == DONE
    logged = rows(tmp_path)
    assert logged[8]["validation_loss"] < logged[3]["validation_loss"]
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32}


def test_evaluation_is_the_same_every_time_and_changes_nothing(tmp_path):
    with trainer(tmp_path) as made:
        generators = torch.get_rng_state()
        before = {name: value.clone() for name, value in made.engine.weights()}
        first, second = made.evaluate(), made.evaluate()
        assert first == second
        assert torch.equal(torch.get_rng_state(), generators)
        assert all(torch.equal(before[name], value) for name, value in made.engine.weights())
        found = first["validation_loss"]
        total, count = 0.0, 0
        made.model.eval()
        for row in range(5):
            batch = made.validation.maker.make([row], [(3, row)])
            with torch.no_grad():
                loss_sum, predicted = made.model(**batch.tensors())
            total, count = total + float(loss_sum), count + int(predicted)
        assert found == pytest.approx(total / count, rel=1e-6)


def test_best_checkpoint_is_that_of_the_lowest_validation_loss(tmp_path, monkeypatch):
    from lsp.training import trainer as module
    from lsp.training.evaluation import Evaluation

    losses = iter([3.0, 1.0, math.nan, 2.0, 2.5])
    monkeypatch.setattr(module, "evaluate", lambda *_: Evaluation(next(losses), 1, 1.0))
    with trainer(tmp_path, max_steps=10, eval_every=2) as made:
        made.fit()
    assert CheckpointStore(tmp_path).steps() == [4, 8, 10]
    assert CheckpointStore(tmp_path).find("best").name == "step-00000004"
    assert rows(tmp_path)[6]["validation_loss"] is None
    assert made.state.best_validation_loss == 1.0


def test_tokens_and_counts(tmp_path):
    with trainer(tmp_path, log_every=2, drift_every=1) as made:
        made.fit()
    logged = rows(tmp_path)
    assert sorted(logged) == [2, 3, 4, 6]
    assert "loss" not in logged[3]  # only evaluated
    assert [logged[n]["tokens"] for n in (2, 4, 6)] == [
        n * ROWS_PER_STEP * LENGTH for n in (2, 4, 6)
    ]
    assert logged[2]["tokens_per_second"] > 0
    assert logged[2]["model_flops_utilisation"] is None  # no peak was given
    assert made.state.cursor == 6 * ROWS_PER_STEP
    seconds = [logged[n]["seconds"] for n in (2, 4, 6)]
    assert seconds == sorted(seconds)


class Measured:
    """Stands for the drift of a model: what was asked, and what is answered."""

    def __init__(self, made, value):
        self.asked: list[bool] = []
        made.model.measure_drift = self.asked.append
        made.model.reversible_drift = lambda: value


def test_drift_waits_for_the_next_row(tmp_path, capsys):
    with trainer(tmp_path, log_every=2, drift_every=3, eval_every=0) as made:
        drift = Measured(made, 0.25)
        made.fit()
    assert drift.asked == [False, False, True, False, False, True]
    logged = rows(tmp_path)
    assert [logged[n]["reversible_drift"] for n in (2, 4, 6)] == [None, 0.25, 0.25]
    error = capsys.readouterr().err
    assert error.count("reconstruction drift 2.5e-01 is above trainer.drift_warning=1.0e-03") == 2


def test_signal_is_noted_only_inside_the_loop():
    stop = StopRequest()
    with stop.deferred():
        stop(signal.SIGUSR1, None)
        stop(signal.SIGTERM, None)
        stop(signal.SIGINT, None)  # the echo of a Ctrl-C that torchrun passes on
        assert stop.signal == signal.SIGUSR1
        stop._since -= 10
        with pytest.raises(SystemExit, match="130"):
            stop(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)
    with pytest.raises(SystemExit, match="75"):
        stop(signal.SIGTERM, None)
