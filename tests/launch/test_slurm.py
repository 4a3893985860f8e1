"""`sbatch launch/slurm.sbatch` on a Slurm of two nodes, made for the purpose."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lsp.checkpointing.store import CheckpointStore
from tests.launch.scripts import LAUNCH, ROOT, STEPS, last_step, missing
from tests.run.tiny import assert_same_run, words

CLUSTER = Path(__file__).with_name("slurm_cluster.sh")

pytestmark = pytest.mark.slow


def why_not() -> str | None:
    """What keeps Slurm from being started here."""
    tool = missing("bash", "munged", "slurmctld", "slurmd", "sbatch", "srun")
    if tool is not None:
        return f"{tool} is not installed (Debian: apt-get install slurm-wlm munge)"
    return "Slurm's daemons need root" if os.geteuid() != 0 else None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            subprocess.run([CLUSTER, "start", folder], check=True)
            yield
        finally:
            subprocess.run([CLUSTER, "stop", folder], check=True)


class Job:
    """A submitted job."""

    def __init__(self, folder: Path, typed: list[str], **variables: str) -> None:
        self.log = folder / "slurm.log"
        options = ["--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={self.log}"]
        given = {"LSP_VENV": sys.prefix, "OMP_NUM_THREADS": "1"} | variables
        submitted = subprocess.run(
            ["sbatch", *options, str(LAUNCH / "slurm.sbatch"), *typed],
            cwd=ROOT,
            env=os.environ | given,
            capture_output=True,
            text=True,
            check=True,
        )
        self.number = submitted.stdout.strip()

    def show(self, field: str) -> str:
        shown = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", self.number],
            capture_output=True,
            text=True,
            check=True,
        )
        found = re.search(rf"\b{field}=(\S+)", shown.stdout)
        return found.group(1) if found else ""

    def until(self, condition: Callable[[], Any], seconds: float = 120.0) -> None:
        """Waits until something is true; a requeued job need not wait two minutes for its turn."""
        end, pending = time.monotonic() + seconds, 0.0
        while not condition():
            if time.monotonic() > end:
                self.do("scancel", self.number)
                raise TimeoutError(
                    f"{self.show('JobState')}, and it never came to that: {self.output}"
                )
            # At once would be too soon: nodes refuse what is as old as the end of its last start.
            pending = pending or time.monotonic() if self.show("JobState") == "PENDING" else 0.0
            if pending and time.monotonic() > pending + 3:
                self.do("scontrol", "update", f"jobid={self.number}", "StartTime=now")
            time.sleep(0.2)

    def ended(self) -> str:
        """The state it ends in."""
        running = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")
        self.until(lambda: self.show("JobState") not in running, 240)
        return self.show("JobState")

    @staticmethod
    def do(*command: str) -> None:
        subprocess.run(command, check=False, capture_output=True)

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def workers() -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if "SLURM_PROCID" in process.environ() and "lsp" in process.cmdline():
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_preempted_requeued_resumed_finished(tmp_path, corpus, whole, cluster):
    """By the signal that comes before the time limit, and by the loss of a process."""
    run = tmp_path / "run"
    job = Job(tmp_path, words(tmp_path, corpus, *STEPS))
    job.until(lambda: last_step(run) >= 12)
    job.do("scancel", "--batch", "--signal=USR1", job.number)
    job.until(lambda: job.show("Restarts") == "1")
    assert "SIGUSR1 received" in job.output
    assert "lsp: exit code 75; requeueing (restart 1)" in job.output
    saved = max(CheckpointStore(run).steps())
    assert saved >= 12

    job.until(lambda: last_step(run) >= saved + 7)
    os.kill(workers()[0], signal.SIGKILL)
    job.until(lambda: job.show("Restarts") == "2")

    assert job.ended() == "COMPLETED", job.output
    assert job.output.count(f"resuming {run} at step") == 2
    assert f"resuming {run} at step {saved}\n" in job.output
    assert_same_run(run, whole)


def test_cancelled_is_saved_and_stays_cancelled(tmp_path, corpus, cluster):
    run = tmp_path / "run"
    job = Job(tmp_path, words(tmp_path, corpus, *STEPS, "trainer.max_steps=100000"))
    job.until(lambda: last_step(run) >= 3)
    job.do("scancel", job.number)
    assert job.ended() == "CANCELLED", job.output
    job.until(lambda: "stopped at step" in job.output)
    assert max(CheckpointStore(run).steps()) >= 3
    assert job.show("Restarts") == "0"
    assert "requeueing" not in job.output


@pytest.mark.parametrize(
    ("overrides", "variables", "told"),
    [
        (["optimizer=muon"], {}, "optimizer=muon needs whole weight matrices"),
        (["trainer.max_steps=100000"], {"MAX_REQUEUES": "0"}, "a higher MAX_REQUEUES goes on"),
    ],
    ids=["mistake", "too often"],
)
def test_not_requeued(tmp_path, corpus, cluster, overrides, variables, told):
    job = Job(tmp_path, words(tmp_path, corpus, *STEPS, *overrides), **variables)
    if variables:
        job.until(lambda: last_step(tmp_path / "run") >= 2)
        job.do("scancel", "--batch", "--signal=USR1", job.number)
    assert job.ended() == "FAILED", job.output
    assert told in job.output  # by one process of each node
    assert job.show("Restarts") == "0"
