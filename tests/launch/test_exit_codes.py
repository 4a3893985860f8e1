"""What a launcher makes of what its workers say, with a torchrun that does what it is told."""

from __future__ import annotations

import signal
import stat
import sys
from pathlib import Path

import pytest

from tests.launch.scripts import LAUNCH, Launcher, missing

TORCHRUN = """#!{python}
import os, signal, sys, time
plan = os.environ["PLAN"]
with open(os.environ["LSP_EXIT_FILE"], "a") as file:
    file.write(plan.replace(",", "\\n") + "\\n" if plan else "")
def leave(number, frame):
    print("torchrun was sent", signal.Signals(number).name)
    with open(os.environ["LSP_EXIT_FILE"], "a") as file:
        file.write(os.environ.get("SAVED", ""))
    sys.exit(1)
if "WAIT" in os.environ:
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    print("waiting", flush=True)
    time.sleep(60)
print(" ".join(sys.argv[1:]))
sys.exit(int(os.environ["STATUS"]))
"""

pytestmark = pytest.mark.skipif(missing("bash") is not None, reason="bash is not installed")


@pytest.fixture
def launch(tmp_path: Path):
    tool = tmp_path / "tools" / "torchrun"
    tool.parent.mkdir()
    tool.write_text(TORCHRUN.format(python=sys.executable))
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    def start(script: str, *words: str, **variables: str) -> Launcher:
        environment = {
            "PATH": f"{tool.parent}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "LSP_VENV": str(tmp_path / "none"),
            "NPROC": "2",
            "TMPDIR": str(tmp_path),
        }
        command = ["bash", str(LAUNCH / script), *words]
        return Launcher(command, tmp_path / "log", environment | variables)

    return start


@pytest.mark.parametrize(
    ("plan", "status", "code"),
    [
        ("", 0, 0),
        ("0 0,0 0", 0, 0),
        ("0 75,0 75", 1, 75),
        ("0 76,0 76", 1, 76),
        ("0 75,0 76", 1, 76),
        ("0 76,0 1", 1, 1),
        ("0 75,0 2", 1, 2),
        ("0 3,0 3", 1, 3),
        ("0 4,0 76", 1, 4),
        ("0 130,0 75", 1, 130),
        # One never said anything: it was killed.
        ("", 1, 76),
        ("0 75", 1, 76),
        ("0 2", 1, 2),
        # Only the last attempt counts, in whatever order the lines came.
        ("0 76,0 76,1 75,1 75", 1, 75),
        ("0 1,1 0,1 0", 0, 0),
        ("0 76,1 76,0 1", 1, 76),
        # All were done when torchrun failed.
        ("0 0,0 0", 1, 0),
    ],
)
def test_the_gravest_of_the_last_attempt(launch, plan, status, code):
    started = launch("local.sh", PLAN=plan, STATUS=str(status))
    assert started.wait() == code, started.output


def test_words_reach_lsp_as_they_were_typed(launch, tmp_path):
    started = launch(
        "local.sh", "data.paths=[a b]", "seed=1", PLAN="", STATUS="0", MAX_RESTARTS="7"
    )
    assert started.wait() == 0
    assert started.output == (
        "--standalone --nproc-per-node 2 --max-restarts 7 -m lsp train data.paths=[a b] seed=1\n"
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("lsp-exit")] == []


@pytest.mark.parametrize(
    ("number", "passed_on"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGUSR1, "SIGTERM"),
        (signal.SIGHUP, "SIGTERM"),
        (signal.SIGINT, "SIGINT"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_signals_are_passed_on(launch, number, passed_on):
    started = launch("local.sh", PLAN="", STATUS="0", WAIT="1", SAVED="0 75\n0 75\n")
    started.until(lambda: "waiting" in started.output)
    started.process.send_signal(number)
    assert started.wait(20) == 75
    assert started.output.endswith(f"torchrun was sent {passed_on}\n")


def test_a_signal_before_any_worker_began_is_an_interruption(launch):
    started = launch("local.sh", PLAN="", STATUS="0", WAIT="1")
    started.until(lambda: "waiting" in started.output)
    started.process.send_signal(signal.SIGTERM)
    assert started.wait(20) == 75


def test_contact_that_was_lost_is_sought_again(launch):
    started = launch("torchrun.sh", PLAN="0 76,0 76", STATUS="1", MAX_RESTARTS="1")
    assert started.wait(40) == 76
    assert started.output.count("-m lsp train") == 2
    assert "lsp: contact was lost; starting again (1 of 1)" in started.output


@pytest.mark.parametrize(
    ("script", "variables", "told"),
    [
        ("local.sh", {"NPROC": "two"}, "NPROC=two is not a number of processes"),
        ("torchrun.sh", {"NNODES": "x"}, "NNODES=x is not a number of machines"),
        ("torchrun.sh", {"NNODES": "2"}, "NNODES=2 machines need RDZV_ENDPOINT=host:port"),
        ("torchrun.sh", {"RDZV_ENDPOINT": "here"}, "RDZV_ENDPOINT=here is not host:port"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_told(launch, script, variables, told):
    started = launch(script, PLAN="", STATUS="0", **variables)
    assert started.wait() == 2
    assert told in started.output
    assert "-m lsp" not in started.output
