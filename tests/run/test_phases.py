"""Phases: one run over rows and windows that grow, stopped anywhere, equal to one never stopped."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines.prepare import PreparedData
from lsp.checkpointing.store import CheckpointStore, read_state
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE, INTERRUPTED
from lsp.run import build
from lsp.run.build import run_training
from lsp.run.compose import load_train_config, read_yaml
from lsp.run.config import RunConfig
from lsp.run.load import load_run
from lsp.run.phases import Session
from lsp.tracking.tracker import read_rows
from lsp.training.trainer import Trainer
from tests.run.test_exact_resume import CrashError, crash_after, signal_at
from tests.run.tiny import assert_same_run, words

PHASES = [
    {"steps": 3, "sequence_length": 64, "attention_window": [8, 16], "warmup_steps": 1},
    {"steps": 2, "sequence_length": 128, "attention_window": [16, 32], "learning_rate": 0.5},
    {"steps": 4, "sequence_length": 192, "attention_window": [32, 64], "learning_rate": 0.25,
     "tokens_per_step": 384},
]  # fmt: skip
MODEL = [
    "architecture=longformer",
    "architecture.hidden_size=32",
    "architecture.num_hidden_layers=2",
    "architecture.num_attention_heads=2",
    "architecture.intermediate_size=64",
    "architecture.hidden_dropout_prob=0.1",
]


def typed(root: Path, corpus: Path, *overrides: str, name: str, phases: object = None) -> list[str]:
    given = json.dumps(PHASES if phases is None else phases).replace('"', "")
    base = [w for w in words(root, corpus, name=name) if not w.startswith("experiment=")]
    return [
        *base,
        *MODEL,
        f"phases={given}",
        "schedule=constant",
        "schedule.warmup_steps=0",
        "trainer.log_every=2",
        "trainer.eval_every=0",
        "checkpoint.keep_last=9",
        *overrides,
    ]


def train(*given: str) -> int:
    return run_training(load_train_config(list(given)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run through all phases, and the corpus."""
    from tests.run.tiny import write_corpus

    root = tmp_path_factory.mktemp("phases")
    corpus = write_corpus(root / "corpus")
    assert train(*typed(root, corpus, name="whole")) == DONE
    return root, corpus


def test_one_curve_through_all_phases(whole: tuple[Path, Path]) -> None:
    rows = read_rows(whole[0] / "whole" / "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [
        (2, 0), (3, 0), (4, 1), (5, 1), (6, 2), (8, 2), (9, 2),
    ]  # fmt: skip
    rate = load_train_config(typed(*whole, name="whole")).optimizer.learning_rate
    factors = [round(row["learning_rate"] / rate, 6) for row in rows]
    assert factors == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25]
    tokens = {row["step"]: row["tokens"] for row in rows}
    assert (tokens[3], tokens[5], tokens[9]) == (3 * 512, 5 * 512, 5 * 512 + 4 * 384)
    assert [row["step"] for row in rows if "validation_loss" in row] == [3, 5, 9]


def test_each_checkpoint_is_of_its_phase(whole: tuple[Path, Path]) -> None:
    run = whole[0] / "whole"
    for step, number in ((3, 0), (4, 1), (5, 1), (8, 2), (9, 2)):
        loaded = load_run(run, str(step))
        assert loaded.config.phase == number == read_state(loaded.step_dir)["phase"]
        assert loaded.config.sequence_length == PHASES[number]["sequence_length"]
        assert loaded.model.config.attention_window == PHASES[number]["attention_window"]
        # Positions are there for the longest from the start.
        assert loaded.model.config.max_positions == 192
    assert read_state(load_run(run, "5").step_dir)["cursor"] == 2 * 4
    assert read_state(load_run(run).step_dir)["cursor"] == 4 * 2


@pytest.mark.parametrize(
    "step", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 3, 5, 7))]
)
def test_killed_in_any_phase(
    whole: tuple[Path, Path], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 3 and 5 a phase has just ended, and its checkpoint is not there yet."""
    root, corpus = whole
    given = typed(root, corpus, name=f"killed-{step}")
    with monkeypatch.context() as patch:
        crash_after(patch, step)
        with pytest.raises(CrashError):
            train(*given)
    assert train(*given) == DONE
    assert_same_run(root / f"killed-{step}", root / "whole")


def test_killed_between_two_phases(
    whole: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, corpus = whole
    given = typed(root, corpus, name="between")
    began: list[torch.Tensor] = []
    original = Trainer.fit

    def fit(self: Trainer) -> int:
        if self.state.step == 3:
            table = self.model.get_parameter("longformer.embeddings.position_embeddings.weight")
            began.append(table.detach()[self.model.config.first_position :])
            raise CrashError
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", fit)
        with pytest.raises(CrashError):
            train(*given)
    # Rows of 64 are behind: what comes after position 63 begins as they end.
    assert torch.equal(began[0][64:128], began[0][:64])
    assert torch.equal(began[0][128:192], began[0][:64])
    assert CheckpointStore(root / "between").steps() == [3]
    assert train(*given) == DONE
    assert_same_run(root / "between", root / "whole")


def test_stopped_as_a_phase_ends(whole: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one, whose rows are longer, is not prepared for only to be left."""
    root, corpus = whole
    given = typed(root, corpus, name="ending")
    begun: list[int] = []
    build_trainer = build.build_trainer

    def noted(session: Session, *more: Any) -> Any:
        begun.append(session.number)
        return build_trainer(session, *more)

    with monkeypatch.context() as patch:
        signal_at(patch, 3, signal.SIGTERM)
        patch.setattr(build, "build_trainer", noted)
        assert train(*given) == INTERRUPTED
    assert begun == [0]
    assert train(*given) == DONE
    assert_same_run(root / "ending", root / "whole")


@pytest.mark.slow
def test_stopped_by_signals(whole: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root, corpus = whole
    given = typed(root, corpus, name="stopped")
    for step in (1, 4, 6):
        with monkeypatch.context() as patch:
            signal_at(patch, step, signal.SIGTERM)
            assert train(*given) == INTERRUPTED
        assert CheckpointStore(root / "stopped").steps()[-1] == step
    assert train(*given) == DONE
    assert_same_run(root / "stopped", root / "whole")


@pytest.mark.slow
def test_stopped_in_the_evaluation_that_ends_a_phase(
    whole: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the phase is its evaluation, on its own rows."""
    from lsp.training.trainer import EvaluationStoppedError

    root, corpus = whole
    given = typed(root, corpus, name="evaluating")
    original = Trainer.evaluate

    def evaluate(self: Trainer) -> dict[str, float | int | None]:
        if self.state.step == 3:
            raise EvaluationStoppedError
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", evaluate)
        assert train(*given) == INTERRUPTED
    assert train(*given) == DONE
    assert_same_run(root / "evaluating", root / "whole")


def test_a_finished_run_stays_as_it_is(
    whole: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, corpus = whole
    before = read_rows(root / "whole" / "metrics.jsonl")
    assert train(*typed(root, corpus, name="whole")) == DONE
    assert read_rows(root / "whole" / "metrics.jsonl") == before
    assert "is done: it is at step 9; another phase goes on" in capsys.readouterr().err


def test_phases_share_a_vocabulary(
    whole: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That another one was learnt for longer rows is met before the first step."""
    prepare = build.prepare_data

    def another(config: RunConfig) -> PreparedData:
        prepared = prepare(config)
        if config.sequence_length != 192:
            return prepared
        changed = shutil.copytree(prepared.path, whole[0] / "changed")
        tokenizer = changed / prepared.tokenizer_path.relative_to(prepared.path)
        (tokenizer / "tokenizer.json").write_text("{}")
        return replace(prepared, path=changed)

    monkeypatch.setattr(build, "prepare_data", another)
    with pytest.raises(UserError, match=r"changed/\S+ is not that of the phases before"):
        train(*typed(*whole, name="another"))
    assert CheckpointStore(whole[0] / "another").steps() == []


def test_another_run_is_refused_before_its_data_is_prepared(
    whole: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(config: RunConfig) -> PreparedData:
        raise AssertionError

    monkeypatch.setattr(build, "prepare_data", prepare)
    with pytest.raises(UserError, match="another configuration: seed was"):
        train(*typed(*whole, "seed=5", name="whole"))


@pytest.mark.parametrize("number", [0, 2])
def test_other_phases_are_another_run(whole: tuple[Path, Path], number: int) -> None:
    """Those that are over, and the window of the one that the run is in."""
    change = {0: {"steps": 4}, 2: {"attention_window": [32, 32]}}[number]
    changed = [phase | (change if phase is PHASES[number] else {}) for phase in PHASES]
    with pytest.raises(UserError, match=r"another configuration: .*was"):
        train(*typed(*whole, name="whole", phases=changed))


def test_a_later_phase_can_be_added(whole: tuple[Path, Path]) -> None:
    """The run of the phases that there are, and then one more."""
    root, corpus = whole
    assert train(*typed(root, corpus, name="grown", phases=[*PHASES[:1], PHASES[2]])) == DONE
    shorter = [PHASES[0], dict(PHASES[2], steps=5), dict(PHASES[1], steps=1)]
    assert train(*typed(root, corpus, name="grown", phases=shorter)) == DONE
    rows = read_rows(root / "grown" / "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows[-3:]] == [(7, 1), (8, 1), (9, 2)]


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (1, {"sequence_length": 100}, r"phases\[1\]: tokens_per_step=512 is not a multiple of 100"),
        (2, {"attention_window": [32, 63]}, r"phases\[2\]: architecture.attention_window"),
        (2, {"attention_window": None}, r"phases: attention_window has to be given for all"),
        (1, {"steps": 0}, r"phases\[1\].steps=0"),
        (0, {"warmup_steps": 3}, r"phases\[0\]: schedule.warmup_steps=3 is not below steps=3"),
        (0, {"learning_rate": 0}, r"phases\[0\].learning_rate=0"),
        (0, {"window": 3}, r"window"),
    ],
)
def test_refused_before_the_first_step(
    number: int, change: dict[str, object], message: str, whole: tuple[Path, Path]
) -> None:
    phases = [dict(phase) for phase in PHASES]
    phases[number] |= change
    text = json.dumps(phases).replace('"', "").replace("None", "null")
    given = [w for w in typed(*whole, name="refused") if not w.startswith("phases=")]
    with pytest.raises(UserError, match=message):
        train(*given, f"phases={text}")
    assert not (whole[0] / "refused").exists()


def test_windows_are_the_longformers(whole: tuple[Path, Path]) -> None:
    given = [w for w in typed(*whole, name="refused") if not w.startswith("architecture")]
    with pytest.raises(UserError, match=r"phases\[0\]: attention_window=.*architecture=longformer"):
        train(*given, "architecture=reformer")


def test_the_experiment_is_the_papers() -> None:
    from lsp.run.phases import check_each, each_phase
    from lsp.run.validate import validate

    config = load_train_config(["experiment=longformer_staged"])
    check_each(config, validate)
    lengths = [phase.sequence_length for phase in each_phase(config)]
    assert lengths == [2048, 4096, 8192, 16384, 23040]
    assert config.total_steps == 570_000
    windows = [phase.architecture.windows for phase in each_phase(config)]
    assert (windows[0][0], windows[0][-1], windows[-1][0], windows[-1][-1]) == (32, 512, 512, 8192)
    for now, later in pairwise(windows):
        assert later == [2 * window for window in now]
    rates = [phase.optimizer.learning_rate for phase in each_phase(config)]
    assert (rates[0], rates[-1]) == (2.5e-4, 1.5625e-5)


def test_the_saved_configuration_reads_back(whole: tuple[Path, Path]) -> None:
    config = read_yaml(whole[0] / "whole" / "config.yaml")
    assert [phase.sequence_length for phase in config.phases] == [64, 128, 192]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3", "ddp"])
def test_phases_on_two_processes(whole: tuple[Path, Path], strategy: str) -> None:
    """Each phase makes an engine of its own, in the same processes."""
    from tests.distributed.test_train import assert_close_run, launch

    root, corpus = whole
    # Random numbers are each process's own.
    plain = ["architecture.hidden_dropout_prob=0"]
    if not (root / "plain").exists():
        assert train(*typed(root, corpus, *plain, name="plain")) == DONE
    given = typed(root, corpus, *plain, f"parallelism={strategy}", name=strategy)
    live = launch(root, given)
    assert [session.wait() for session in live] == [DONE, DONE], live[0].output
    assert_close_run(root / strategy, root / "plain")
