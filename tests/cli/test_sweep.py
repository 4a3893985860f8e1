"""`-m`: the jobs, their names, their exit codes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lsp.cli import sweep as module
from lsp.cli.main import main
from lsp.cli.sweep import unique_name
from lsp.core.exit_codes import INTERRUPTED
from lsp.run.compose import load_config


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """Records the command of each job instead of running it; `codes` are what they return."""
    monkeypatch.chdir(tmp_path)
    ran, codes = [], []

    def run(words):
        ran.append(list(words))
        return codes[len(ran) - 1] if codes else 0

    monkeypatch.setattr(module, "_run", run)
    return ran, codes


def test_every_combination_is_one_command(jobs, tmp_path):
    ran, _ = jobs
    assert main(["train", "-m", "optimizer=adamw,muon", "seed=0,1", "trainer.max_steps=50"]) == 0
    fixed = ["trainer.max_steps=50"]
    assert ran == [
        [
            "train",
            f"optimizer={optimizer}",
            f"seed={seed}",
            *fixed,
            f"run_name=run-optimizer-{optimizer}_seed-{seed}",
        ]
        for optimizer in ("adamw", "muon")
        for seed in (0, 1)
    ]
    assert list(tmp_path.iterdir()) == []


def test_names_grow_from_the_experiments(jobs):
    ran, _ = jobs
    assert main(["train", "--multirun", "experiment=debug,first_run"]) == 0
    assert [words[-1] for words in ran] == [
        "run_name=debug-experiment-debug",
        "run_name=first_run-experiment-first_run",
    ]


def test_a_given_run_name_is_kept(jobs):
    ran, _ = jobs
    assert main(["train", "-m", "seed=1,2", "run_name=s${seed}"]) == 0
    assert [load_config("train", words[1:]).run_name for words in ran] == ["s1", "s2"]


def test_verbs_without_run_name_get_none(jobs):
    ran, _ = jobs
    assert main(["evaluate", "-m", "run=x", "checkpoint=latest,best"]) == 0
    assert [words[1:] for words in ran] == [
        ["run=x", "checkpoint=latest"],
        ["run=x", "checkpoint=best"],
    ]


def test_flags_reach_the_jobs(jobs, tmp_path):
    ran, _ = jobs
    (tmp_path / "mine").mkdir()
    assert main(["train", "-m", "--config-dir", "mine", "seed=1,2"]) == 0
    assert all(words[1:3] == ["--config-dir", "mine"] for words in ran)


@pytest.mark.parametrize(
    ("codes", "code", "started"),
    [
        ([0, 0, 0], 0, 3),
        ([0, 2, 0], 2, 3),
        ([0, 3, 1], 3, 3),
        ([0, INTERRUPTED, 0], INTERRUPTED, 2),
        ([1, INTERRUPTED, 0], INTERRUPTED, 2),
    ],
    ids=["all-well", "one-fails", "first-failure", "interrupted", "interrupted-after-failure"],
)
def test_exit_codes_propagate(codes, code, started, jobs, capsys):
    ran, returns = jobs
    returns.extend(codes)
    assert main(["train", "-m", "seed=0,1,2"]) == code
    assert len(ran) == started
    assert ("jobs failed" in capsys.readouterr().err) == (code != 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optimizer=adamw,adamx"], "optimizer=adamx"),
        (["seed=1,x"], "seed=x"),
        (["optimizer.lr=1,2"], "optimizer.learning_rate"),
    ],
    ids=["choice", "type", "key"],
)
def test_a_mistake_is_found_before_the_first_job(words, says, jobs, capsys):
    ran, _ = jobs
    assert main(["train", "-m", *words]) == 2
    assert says in capsys.readouterr().err
    assert ran == []


def test_refused_under_several_processes(jobs, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "-m", "seed=0,1"]) == 2
    assert "--multirun" in capsys.readouterr().err


def test_jobs_are_processes_of_their_own(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "-m", "run=a,b"]) == 2
    captured = capfd.readouterr()
    assert captured.out == "job 0: run=a\njob 1: run=b\n"
    assert captured.err.count("is not the folder of a run") == 2
    assert "2 of 2 jobs failed: job 0 (exit code 2), job 1 (exit code 2)" in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_the_job_which_decides(number, tmp_path, monkeypatch):
    ready, job = tmp_path / "ready", tmp_path / "job"
    name = number.name.removeprefix("SIG")
    job.write_text(
        f"#!/bin/sh\ntrap 'exit 75' {name}\ntouch {ready}\n"
        "for i in $(seq 3000); do sleep 0.02; done\n"
    )
    job.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(job))

    def signal_us_when_it_is_ready() -> None:
        _wait_for(ready)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=signal_us_when_it_is_ready)
    before = signal.getsignal(number)
    sender.start()
    assert module._run(["train"]) == 75
    sender.join()
    assert signal.getsignal(number) is before


def _wait_for(path: Path, seconds: float = 60) -> None:
    for _ in range(int(seconds / 0.02)):
        if path.exists():
            return
        time.sleep(0.02)
    raise TimeoutError(f"{path} did not appear")


def test_a_killed_job_has_the_code_a_shell_would_give(tmp_path, monkeypatch):
    job = tmp_path / "job"
    job.write_text("#!/bin/sh\nkill -9 $$\n")
    job.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(job))
    assert module._run(["train"]) == 128 + 9


@pytest.mark.slow
def test_an_interrupted_sweep_saves_and_goes_on(tmp_path):
    words = ["train", "-m", "experiment=debug", "seed=0,1", "checkpoint.every=0"]
    command = [sys.executable, "-m", "lsp", *words]
    long = subprocess.Popen([*command, "trainer.max_steps=100000"], cwd=tmp_path)
    _wait_for(tmp_path / "checkpoints" / "debug-seed-0" / "metrics.jsonl")
    long.terminate()
    assert long.wait(timeout=60) == INTERRUPTED
    first, second = (tmp_path / "checkpoints" / f"debug-seed-{seed}" for seed in (0, 1))
    assert (first / "latest").is_file()
    assert not second.exists()
    step = int((first / "latest").read_text().strip().removeprefix("step-"))
    subprocess.run([*command, f"trainer.max_steps={step + 3}"], cwd=tmp_path, check=True)
    assert (first / "latest").read_text().strip() == f"step-{step + 3:08}"
    assert (second / "latest").is_file()


def test_unique_names_are_folder_names_and_stable():
    names = [
        unique_name("run", swept)
        for swept in (
            ["seed=1"],
            ["seed=2"],
            ["data.paths=[a/b.txt]"],
            ["data.paths=[a_b.txt]"],
            ["optimizer.learning_rate=1e-3"],
            [f"data.field={'x' * 300}"],
            [f"data.field={'x' * 301}"],
        )
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.+-]{1,160}", name) for name in names)
    assert names[0] == "run-seed-1"
    assert unique_name("run", []) == "run"
