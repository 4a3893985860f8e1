"""The table of verbs: what `lsp` answers before any verb is loaded."""

import errno
import subprocess
import sys
import time

import pytest

from lsp import __version__
from lsp.cli import main as cli
from lsp.cli.main import VERBS, main
from lsp.core.errors import UserError

HEAVY = ("torch", "transformers", "datasets", "deepspeed", "hydra", "omegaconf", "numpy", "yaml")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]], ids=["alone", "--help", "-h"])
def test_prints_every_verb_with_an_example(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"\n  {name} " in out
        assert verb.examples[0][1] in out


def test_lists_only_verbs_that_are_there():
    assert set(VERBS) == {
        "prepare",
        "train",
        "evaluate",
        "generate",
        "export",
        "consolidate",
        "import",
        "verify",
        "architectures",
    }


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lsp {__version__}\n"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trian", "did you mean 'train'?"),
        ("imports", "did you mean 'import'?"),
        ("plan", "plan is not a verb"),
        ("run_name=x", "run_name=x is not a verb"),
        ("--cfg", "a verb comes first"),
    ],
)
def test_unknown_verb(word, says, capsys):
    assert main([word]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert "choose one of prepare, train" in captured.err or "a verb comes first" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("argv", [[], ["--help"]], ids=["alone", "--help"])
def test_answers_at_once(argv):
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy with other things
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lsp", *argv], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5


def test_imports_nothing_heavy():
    code = "import lsp.cli.main, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not set(HEAVY) & set(done.stdout.split())


def test_module_and_command_are_the_same():
    done = subprocess.run([sys.executable, "-m", "lsp", "trian"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("lsp: trian is not a verb")


def _failing(error):
    def dispatch(words):
        raise error

    return dispatch


def _data_error():
    from data_pipelines.errors import DataError

    return DataError("data.paths=[x] finds no file")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("seed=-1 must be 0 or more"), 2, "lsp: seed=-1 must be 0 or more\n"),
        (_data_error(), 2, "lsp: data.paths=[x] finds no file\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "checkpoints/a/x"),
            2,
            "lsp: checkpoints/a/x: No space left on device\n",
        ),
        (OSError(errno.ENOSPC, "No space left"), 2, "lsp: writing: No space left\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (KeyboardInterrupt(), 130, "lsp: interrupted\n"),
    ],
    ids=["user-error", "data-error", "disk-full", "disk-full-unnamed", "no-permission", "ctrl-c"],
)
def test_a_users_mistake_is_told_without_a_traceback(error, code, says, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_dispatch", _failing(error))
    assert main(["train"]) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [RuntimeError("ours"), ValueError("ours"), FileNotFoundError(errno.ENOENT, "gone", "x")],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_shows_its_traceback(error, monkeypatch):
    monkeypatch.setattr(cli, "_dispatch", _failing(error))
    with pytest.raises(type(error)):
        main(["train"])


def test_an_error_on_another_rank_says_which(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(cli, "_dispatch", _failing(UserError("gone")))
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "lsp (rank 3): gone\n"


def test_composition_errors_are_told_once_per_machine(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit, match="2"):  # after leaving another the time to speak
        main(["train", "seed=abc"])
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_error():
    # `head -1` closes the pipe after one line of a help text longer than a pipe's buffer.
    command = f"{sys.executable} -m lsp train --cfg all | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
