"""What workers tell their launcher as they leave."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lsp.cli import main as cli
from lsp.core import exit_file
from lsp.core.errors import UserError


@pytest.fixture
def lines(tmp_path, monkeypatch):
    path = tmp_path / "codes"
    path.touch()
    monkeypatch.setenv("LSP_EXIT_FILE", str(path))
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    monkeypatch.setattr(exit_file, "attach", lambda: None)  # this process is nobody's worker
    return lambda: path.read_text().splitlines()


def leave(monkeypatch, how) -> None:
    def dispatch(words):
        if isinstance(how, BaseException):
            raise how
        return how

    monkeypatch.setattr(cli, "_dispatch", dispatch)
    with suppress(SystemExit, KeyError):
        cli.main(["train"])


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (0, "0 0"),
        (75, "0 75"),
        (UserError("told"), "0 2"),
        (SystemExit(76), "0 76"),
        (SystemExit("words"), "0 1"),
        (KeyError("a bug"), "0 1"),
        (KeyboardInterrupt(), "0 130"),
    ],
    ids=str,
)
def test_every_way_to_leave_is_recorded(lines, monkeypatch, how, line):
    leave(monkeypatch, how)
    assert lines() == [line]


def test_attempts_are_told_apart(lines, monkeypatch):
    leave(monkeypatch, 76)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    leave(monkeypatch, 0)
    assert lines() == ["0 76", "1 0"]


@pytest.mark.parametrize("code", [2, 3])
def test_what_would_only_repeat_itself_is_not_tried_again(lines, monkeypatch, code):
    leave(monkeypatch, code)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(cli, "_dispatch", lambda words: pytest.fail("it began again"))
    assert cli.main(["train"]) == code
    assert lines() == [f"0 {code}"]


@pytest.mark.parametrize("code", [0, 1, 75, 76])
def test_everything_else_is(lines, monkeypatch, code):
    leave(monkeypatch, code)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert exit_file.settled() is None


def test_nothing_is_asked_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.delenv("LSP_EXIT_FILE", raising=False)
    leave(monkeypatch, 0)
    monkeypatch.setenv("LSP_EXIT_FILE", str(tmp_path / "gone"))
    monkeypatch.setattr(exit_file, "attach", lambda: None)
    leave(monkeypatch, 0)
    assert exit_file.settled() is None
    assert list(tmp_path.iterdir()) == []


LAUNCHED = """
import os, subprocess, sys
os.environ["LSP_LAUNCHER"] = str(os.getpid())
subprocess.run([sys.executable, "-c", os.environ["AGENT"]])
"""
AGENT = """
import os, subprocess, sys
print(subprocess.Popen([sys.executable, "-c", os.environ["WORKER"]]).pid, flush=True)
{}
"""
WORKER = """
import time
from lsp.core import exit_file
{}
exit_file.attach()
open(exit_file.os.environ["LSP_EXIT_FILE"], "a").write("attached")
time.sleep(60)
"""


def start(path, agent: str, worker: str) -> int:
    """Process number of a worker, below something like torchrun, below something like us."""
    variables = {
        "LSP_EXIT_FILE": str(path),
        "AGENT": AGENT.format(agent),
        "WORKER": WORKER.format(worker),
    }
    command = [sys.executable, "-c", LAUNCHED]
    process = subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE)
    return int(process.stdout.readline())


def gone(pid: int, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
                time.sleep(0.01)
                continue
        return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's end")
class TestWorkersDoNotOutliveTorchrun:
    def test_which_is_killed(self, tmp_path):
        path = tmp_path / "codes"
        path.touch()
        worker = start(path, "import time; time.sleep(60)", "")
        end = time.monotonic() + 20
        while path.read_text() != "attached" and time.monotonic() < end:
            time.sleep(0.01)
        # A launcher that waits for the lock waits for the worker.
        assert subprocess.run(["flock", "--nonblock", path, "true"]).returncode == 1
        agent = exit_file._parent_of(worker)
        os.kill(int(agent), signal.SIGKILL)
        assert gone(worker)
        assert subprocess.run(["flock", "--nonblock", path, "true"]).returncode == 0

    @pytest.mark.parametrize("removed", [False, True], ids=["file there", "file removed"])
    def test_which_ended_before_they_had_begun(self, tmp_path, removed):
        path = tmp_path / "codes"
        path.touch()
        waits = (
            f"import os; os.path.exists({str(path)!r}) and {removed} and os.remove({str(path)!r})"
        )
        worker = start(path, "", f"time.sleep(1); {waits}")
        assert gone(worker)
        assert not path.exists() if removed else path.read_text() == ""
