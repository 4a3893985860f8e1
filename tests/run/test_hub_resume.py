"""Runs of architectures of `transformers`: killed or stopped, and gone on with."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lsp.core.exit_codes import DONE
from lsp.run.build import run_training
from lsp.run.compose import load_train_config
from lsp.tracking.tracker import read_rows
from tests.distributed.test_train import SHARDED, assert_close_run, launch
from tests.models.hub.tiny import tiny
from tests.processes import Session
from tests.run.tiny import assert_same_run, words

pytestmark = pytest.mark.slow

OBJECTIVES = {"llama": "causal", "bert": "next_sentence", "t5": "span_corruption"}
DROPOUT = {"llama": "attention_dropout", "bert": "hidden_dropout_prob", "t5": "dropout_rate"}


def typed(model_type: str, dropout: float) -> list[str]:
    """What chooses a tiny model."""
    values = tiny(model_type) | {DROPOUT[model_type]: dropout}
    if model_type == "bert":
        values["attention_probs_dropout_prob"] = dropout
    return [
        "experiment=",
        "architecture=hub",
        f"architecture.model_type={model_type}",
        f"objective={OBJECTIVES[model_type]}",
        *(f"+architecture.model_init_config.{key}={value}" for key, value in values.items()),
        "sequence_length=128",
        "schedule.warmup_steps=2",
        "trainer.eval_every=4",  # also where a part of the run ends
        "trainer.eval_rows=8",
        "trainer.drift_every=0",
    ]


def steps_of(run: Path) -> list[int]:
    return [row["step"] for row in read_rows(run / "metrics.jsonl")]


@pytest.mark.parametrize("model_type", OBJECTIVES)
def test_killed_and_gone_on_with_is_bit_equal(tmp_path, corpus, model_type):
    overrides = typed(model_type, dropout=0.2)
    whole = words(tmp_path, corpus, *overrides, name="whole")
    assert run_training(load_train_config(whole)) == DONE
    killed = words(tmp_path, corpus, *overrides, name="killed")
    session = Session(["train", *killed], tmp_path / "killed.log")
    session.until(lambda: max(steps_of(tmp_path / "killed"), default=0) >= 6)
    session.signal(signal.SIGKILL)
    assert session.wait() == -signal.SIGKILL
    assert run_training(load_train_config(killed)) == DONE
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("model_type", OBJECTIVES)
def test_goes_on_with_other_numbers_of_processes(tmp_path, corpus, model_type):
    overrides = typed(model_type, dropout=0.0)

    def train(steps: int, strategy: str, processes: int) -> None:
        run = words(
            tmp_path,
            corpus,
            *overrides,
            f"parallelism={strategy}",
            *([SHARDED] if processes > 1 else []),
            f"trainer.max_steps={steps}",
            "schedule=constant",
            name="other",
        )
        sessions = launch(tmp_path, run, processes=processes)
        assert [s.wait(300) for s in sessions] == [DONE] * processes, sessions[0].output

    reference = words(tmp_path, corpus, *overrides, "schedule=constant", name="constant")
    assert run_training(load_train_config(reference)) == DONE
    train(4, "zero2", 2)
    train(8, "single", 1)
    train(12, "zero3", 2)
    assert_close_run(tmp_path / "other", tmp_path / "constant")
