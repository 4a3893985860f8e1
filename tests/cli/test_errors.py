"""Every class of mistake on the command line: one or two lines, and exit code 2."""

import pytest

from lsp.cli.main import main

MISTAKES = {
    "unknown-key": ("train optimizer.lr=3", ["optimizer.lr=3", "optimizer.learning_rate"]),
    "misspelt-key": ("train trainer.max_stps=4", ["trainer.max_stps=4", "trainer.max_steps?"]),
    "key-without-its-group": ("train max_steps=4", ["max_steps=4", "trainer.max_steps?"]),
    "misspelt-group": ("train optmizer=muon", ["optmizer=muon", "optimizer?"]),
    "key-of-no-node": ("train nothing.like.it=1", ["nothing.like.it=1", "--cfg job"]),
    "key-below-a-value": ("train seed.x=1", ["seed.x=1 is not a key"]),
    "key-in-a-table": ("train optimizer={lr:1}", ["optimizer.lr", "optimizer.learning_rate"]),
    "added-key": ("train +optimizer.lr=3", ["optimizer.lr=3", "optimizer.learning_rate"]),
    "added-top-level-key": ("train +nothing=3", ["nothing=3 is not a key"]),
    "small-verb-unknown-key": ("evaluate row=3", ["row=3", "rows?"]),
    "import-unknown-key": ("import from=x into=y", ["into=y", "choose one of from, out"]),
    "import-added-key": ("import from=x +into=y", ["into=y", "choose one of from, out"]),
    "not-a-whole-number": ("train seed=abc", ["seed=abc", "a whole number"]),
    "fraction-for-a-whole-number": ("train seed=1.5", ["seed=1.5", "a whole number"]),
    "not-a-number": ("train optimizer.learning_rate=fast", ["=fast", "a number"]),
    "not-a-bool": ("train checkpoint.keep_best=maybe", ["=maybe", "true or false"]),
    "empty-value": ("train seed=", ["seed=", "a whole number"]),
    "null-for-a-value": ("train seed=null", ["seed=null", "a value"]),
    "text-for-a-list": ("train data=text data.paths=a.txt", ["write data.paths=[a.txt]"]),
    "list-for-a-text": ("train run_name=[a,b]", ["run_name=[a,b]", "one text"]),
    "unknown-key-in-a-list": ("train phases=[{stps:3}]", ["stps", "did you mean steps?"]),
    "wrong-value-in-a-list": ("train phases=[{steps:a}]", ["phases: steps=a", "a whole number"]),
    "phase-of-a-run": ("train phase=1", ["phase=1", "leave it out"]),
    "entry-of-a-list": ("train phases[0].steps=3", ["write phases.0.steps=3"]),
    "value-for-a-node": ("train trainer=5", ["trainer=5"]),
    "unknown-choice": ("train optimizer=adamx", ["optimizer=adamx", "'adamw'", "adafactor"]),
    "unknown-experiment": ("train experiment=nope", ["experiment=nope", "first_run"]),
    "unknown-architecture": ("train architecture=gpt", ["architecture=gpt", "reformer"]),
    "null-choice": ("train optimizer=null", ["optimizer=null", "adamw"]),
    "number-as-choice": ("train optimizer=3", ["optimizer=3", "adamw"]),
    "two-choices": ("train optimizer=[adamw,muon]", ["optimizer takes one choice"]),
    "choice-added-twice": ("train +optimizer=muon", ["optimizer=<name> without +"]),
    "group-removed": ("train ~optimizer", ["optimizer is missing"]),
    "sweep-without-m": ("train seed=1,2", ["seed=1,2", "-m"]),
    "no-equals-sign": ("train seed", ["'seed' is not an override", "key=value"]),
    "no-key": ("train =3", ["=3", "key=value"]),
    "open-bracket": ("train data.paths=[a", ["data.paths=[a", "data.paths=[a,b]"]),
    "special-characters": ("train run_name=f(x", ["run_name=f(x", """'run_name="f(x"'"""]),
    "interpolation": ("train run_name=${nope}", ["run_name", "nope"]),
    "refused-value": ("train trainer.max_steps=-1", ["trainer.max_steps=-1", "1 or more"]),
    "refused-architecture-value": (
        "train architecture.hidden_size=0",
        ["architecture.hidden_size=0"],
    ),
    "refused-tokenizer": ("train tokenizer=bpe tokenizer.vocab_size=10", ["=10", "more than"]),
    "missing-paths": ("train data=text", ["data.paths", "data.paths=[corpus/*.txt]"]),
    "run-name-with-slash": ("train run_name=a/b", ["run_name='a/b'", "one folder"]),
    "missing-run": ("evaluate", ["run is missing: give run="]),
    "missing-from": ("import", ["from is missing: give from="]),
    "no-such-run": ("generate run=nowhere/x", ["run=nowhere/x"]),
    "bad-checkpoint": ("export run=x checkpoint=newest", ["checkpoint=newest", "latest, best"]),
    "bad-split": ("evaluate run=x split=test", ["split=test", "validation"]),
    "bad-dtype": ("export run=x dtype=int8", ["dtype=int8", "bf16"]),
    "bad-shard-size": ("export run=x max_shard_size=lots", ["max_shard_size=lots", "5GB"]),
    "bad-temperature": ("generate run=x temperature=0", ["temperature=0", "greedy=true"]),
    "bad-top-p": ("generate run=x top_p=2", ["top_p=2"]),
    "two-prompts": ("generate run=x prompt=a prompt_file=b", ["prompt='a'", "prompt_file=b"]),
    "import-unknown-architecture": ("import from=x architecture=gpt", ["architecture=gpt"]),
    "import-from-a-list": ("import from=[a]", ["from="]),
    "unknown-flag": ("train --steps 3", ["--steps", "key=value"]),
    "flag-as-option": ("train --run_name=x", ["--run_name=x", "key=value"]),
    "bad-cfg": ("train --cfg jobs", ["jobs", "--cfg"]),
    "no-such-config-dir": ("train --config-dir nowhere", ["--config-dir nowhere"]),
    "no-such-config-name": ("train --config-name nothing", ["--config-name nothing"]),
    "no-such-config-path": ("train --config-path nowhere", ["nowhere"]),
}


@pytest.mark.parametrize(("command", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_told_in_two_lines(command, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lsp: ")
    assert captured.err.count("\n") <= 2
    for text in says:
        assert text in captured.err
    assert "_schema" not in captured.err
    assert list(tmp_path.iterdir()) == []  # nothing lost, nothing left behind


BROKEN_FILES = {
    "unknown-key": ("optimizer: {momenttum: 0.5}", ["optimizer.momenttum", "experiment/mine.yaml"]),
    "wrong-type": ("seed: abc", ["experiment/mine.yaml", "seed", "abc"]),
    "not-yaml": ("seed: [1}", ["mine.yaml, line 2", "YAML"]),
    "missing-choice": ("defaults: [{override /optimizer: mine}]", ["optimizer=mine", "adamw"]),
    "refused-value": ("trainer: {max_steps: 0}", ["trainer.max_steps=0"]),
}


@pytest.mark.parametrize(("text", "says"), BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
def test_mistake_in_a_users_file(text, says, capsys, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    assert main(["train", "--config-dir", str(tmp_path), "experiment=mine"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") <= 2
    for word in says:
        assert word in err


def test_primary_config_that_builds_on_nothing(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    assert main(["train", "--config-dir", str(tmp_path), "--config-name", "mine"]) == 2
    assert "defaults: [train, _self_]" in capsys.readouterr().err


def test_near_run_is_suggested(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first_run", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "config.yaml").write_text("seed: 0\n")
    assert main(["evaluate", "run=checkpoints/frist_run"]) == 2
    assert "did you mean 'checkpoints/first_run'?" in capsys.readouterr().err


def test_checkpoint_given_as_run(capsys, tmp_path):
    step = tmp_path / "first_run" / "step-00000100"
    step.mkdir(parents=True)
    (step / "config.yaml").write_text("seed: 0\n")
    assert main(["evaluate", f"run={step}"]) == 2
    assert f"write run={step.parent} checkpoint=100" in capsys.readouterr().err
