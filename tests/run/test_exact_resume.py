"""Stop and resume gives the run that was never stopped, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from lsp.checkpointing.store import CheckpointStore, read_state
from lsp.core.exit_codes import DONE, INTERRUPTED
from lsp.run.build import run_training
from lsp.run.compose import load_train_config
from lsp.tracking.tracker import read_rows
from lsp.training.trainer import Trainer
from tests.processes import Session
from tests.run.tiny import LONGFORMER, REMEMBERING, assert_same_run, curve, words

DROPOUT = [
    "architecture.hidden_dropout_prob=0.1",
    "architecture.local_attention_probs_dropout_prob=0.1",
    "architecture.lsh_attention_probs_dropout_prob=0.1",
]


class CrashError(Exception):
    """What a run dies of here."""


def crash_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = Trainer.after_step

    def after_step(self, result):
        original(self, result)
        if self.state.step == step:
            raise CrashError

    monkeypatch.setattr(Trainer, "after_step", after_step)


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Sends this process a signal while it computes a step."""
    original = Trainer.model_seed

    def model_seed(self):
        if self.state.step == step - 1:
            os.kill(os.getpid(), number)
        return original(self)

    monkeypatch.setattr(Trainer, "model_seed", model_seed)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["optimizer=adamw", *DROPOUT], id="adamw-causal-dropout"),
        pytest.param(["optimizer=muon", "objective=masked", *DROPOUT], id="muon-masked-dropout"),
        pytest.param(
            ["optimizer=adafactor", "memory=stored", "trainer.micro_batch=1", *DROPOUT],
            id="adafactor-stored-accumulation",
        ),
        pytest.param(
            ["precision=bf16", "objective=masked", "packing=one_per_row", "memory=recomputed"],
            id="bf16-masked-recomputed",
        ),
        pytest.param([*REMEMBERING, "trainer.micro_batch=8"], id="remembering-accumulation"),
        pytest.param([*REMEMBERING, "precision=bf16", "memory=stored"], id="remembering-bf16"),
    ],
)
def test_crash_between_checkpoints(tmp_path, corpus, monkeypatch, overrides):
    # Rows are the means of five steps: the crash is in the middle of one, and so is the
    # checkpoint that the run goes back to.
    overrides = [*overrides, "trainer.log_every=5"]
    whole = words(tmp_path, corpus, *overrides, name="whole")
    assert run_training(load_train_config(whole)) == DONE

    broken = words(tmp_path, corpus, *overrides, name="broken")
    with monkeypatch.context() as patch:
        crash_after(patch, 11)
        with pytest.raises(CrashError):
            run_training(load_train_config(broken))
    assert read_state(CheckpointStore(tmp_path / "broken").latest())["step"] == 8
    assert run_training(load_train_config(broken)) == DONE
    assert_same_run(tmp_path / "broken", tmp_path / "whole")
    assert [row["step"] for row in curve(tmp_path / "broken")] == [5, 6, 10, 12]


def test_time_and_memory_add_up_over_sessions(tmp_path, corpus, monkeypatch):
    again = words(tmp_path, corpus, "trainer.log_every=3")
    with monkeypatch.context() as patch:
        crash_after(patch, 9)
        with pytest.raises(CrashError):
            run_training(load_train_config(again))
    saved = read_state(CheckpointStore(tmp_path / "run").latest())
    assert saved["step"] == 8
    before = {row["step"]: row for row in read_rows(tmp_path / "run" / "metrics.jsonl")}
    # Also the two steps since the last logged row.
    assert before[6]["seconds"] < saved["seconds"] < before[9]["seconds"]
    monkeypatch.setattr("lsp.training.trainer.peak_memory_bytes", lambda device: 1)
    assert run_training(load_train_config(again)) == DONE
    after = {row["step"]: row for row in read_rows(tmp_path / "run" / "metrics.jsonl")}
    assert after[12]["seconds"] > saved["seconds"]
    assert after[12]["peak_memory_bytes"] == before[6]["peak_memory_bytes"] > 1


def test_signals_finish_the_step_and_save(tmp_path, corpus, monkeypatch, capfd):
    overrides = ["trainer.log_every=5", "checkpoint.every=0", "checkpoint.keep_last=9", *DROPOUT]
    whole = words(tmp_path, corpus, *overrides, name="whole")
    assert run_training(load_train_config(whole)) == DONE

    stopped = words(tmp_path, corpus, *overrides, name="stopped")
    for step, number in ((3, signal.SIGTERM), (7, signal.SIGUSR1), (8, signal.SIGINT)):
        before = signal.getsignal(number)
        with monkeypatch.context() as patch:
            signal_at(patch, step, number)
            assert run_training(load_train_config(stopped)) == INTERRUPTED == 75
        assert CheckpointStore(tmp_path / "stopped").steps()[-1] == step  # not one step more
        error = capfd.readouterr().err
        assert f"{number.name} received; finishing this step, then saving" in error
        assert f"stopped at step {step} of 12" in error
        assert signal.getsignal(number) == before

    assert run_training(load_train_config(stopped)) == DONE
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_signal_at_the_last_step_is_too_late(tmp_path, corpus, monkeypatch):
    signal_at(monkeypatch, 12, signal.SIGTERM)
    assert run_training(load_train_config(words(tmp_path, corpus))) == DONE


def test_signal_before_the_loop_ends_the_process(tmp_path, corpus, monkeypatch, capfd):
    import lsp.run.build as build

    original = build.prepare_data
    for number, expected in (
        (signal.SIGTERM, SystemExit),
        (signal.SIGUSR1, SystemExit),
        (signal.SIGINT, KeyboardInterrupt),
    ):

        def prepare_data(config, number=number):
            os.kill(os.getpid(), number)
            return original(config)

        monkeypatch.setattr(build, "prepare_data", prepare_data)
        with pytest.raises(expected) as raised:
            run_training(load_train_config(words(tmp_path, corpus)))
        if expected is SystemExit:
            assert raised.value.code == INTERRUPTED
            assert f"{number.name} received" in capfd.readouterr().err


def slow_disk() -> None:
    """Makes sealing a checkpoint take a second, so that a kill can land in it."""
    import lsp.checkpointing.store as store

    original = store.seal

    def seal(folder):
        time.sleep(1)
        original(folder)

    store.seal = seal


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["trainer.log_every=1", *DROPOUT], id="causal"),
        pytest.param(
            [*REMEMBERING, "trainer.micro_batch=16"], id="remembering", marks=pytest.mark.slow
        ),
        pytest.param(
            [*LONGFORMER, "trainer.micro_batch=2"], id="longformer", marks=pytest.mark.slow
        ),
        pytest.param(
            ["trainer.log_every=3", "objective=masked", "optimizer=muon", *DROPOUT],
            id="masked",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_and_stopped_again_and_again(tmp_path, corpus, overrides):
    """Real processes, killed for real: each goes on where the last checkpoint stands."""
    common = [*overrides, "trainer.max_steps=40", "trainer.eval_every=10", "checkpoint.every=5"]
    run, generator = tmp_path / "run", random.Random(",".join(overrides))

    def session(name: str = "run", before=None) -> Session:
        log = tmp_path / f"{len(list(tmp_path.glob('*.log')))}.log"
        return Session(["train", *words(tmp_path, corpus, *common, name=name)], log, before)

    def reach(live: Session, step: int) -> None:
        rows = run / "metrics.jsonl"
        live.until(lambda: any(row["step"] >= step for row in read_rows(rows)))

    whole = session("whole")

    killed = session()
    reach(killed, generator.randint(6, 14))
    killed.signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert whole.wait() == DONE

    saving = session(before=slow_disk)
    saving.until(lambda: list(run.glob(".step-*.aside/state.json")))
    saving.signal(signal.SIGKILL)
    assert saving.wait() == -signal.SIGKILL
    assert list(run.glob(".step-*.aside"))  # it was in the middle of it
    at = max(CheckpointStore(run).steps())

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        stopped = session()
        at += generator.randint(4, 7)
        # Until then the curve may still have rows of a session that came further than its saves.
        stopped.until(lambda live=stopped: "resuming" in live.output)
        reach(stopped, at)
        stopped.signal(number)
        assert stopped.wait() == INTERRUPTED
        assert "resuming" in stopped.output
        at = max(CheckpointStore(run).steps())
        assert f"stopped at step {at} of 40" in stopped.output

    last = session()
    assert last.wait() == DONE
    assert f"resuming {run} at step {at}" in last.output
    assert_same_run(run, tmp_path / "whole")
    assert not list(run.glob(".step-*"))
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
