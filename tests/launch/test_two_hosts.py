"""`launch/torchrun.sh` over two hosts: network namespaces that a virtual cable joins."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsp.core.exit_codes import DONE, INTERRUPTED, STALLED
from tests.launch.scripts import LAUNCH, STEPS, Launcher, last_step, missing
from tests.run.tiny import assert_same_run, words

ADDRESSES = ("10.91.7.1", "10.91.7.2")


def why_not() -> str | None:
    """What keeps two hosts from being made here."""
    tool = missing("ip", "bash")
    if tool is not None:
        return f"{tool} is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["ip", "netns", "add", "lsp-try"], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespaces here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", "lsp-try"], check=True)
    return None


pytestmark = pytest.mark.slow


class Host:
    """A network namespace, and what runs in it."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address

    def run(self, command: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.name, *command.split()], check=True)

    def launch(self, log: Path, typed: list[str], **variables: str) -> Launcher:
        """The same command on every host."""
        launcher = ["bash", str(LAUNCH / "torchrun.sh"), *typed]
        given = {"NNODES": "2", "RDZV_ENDPOINT": f"{ADDRESSES[0]}:29400", "NPROC": "1"}
        given["OMP_NUM_THREADS"] = "1"
        return Launcher(["ip", "netns", "exec", self.name, *launcher], log, given | variables)

    def lose_power(self) -> None:
        """Kills all that runs there, at once."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        )
        for pid in listed.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = tuple(Host(f"lsp-{os.getpid()}-{i}", ADDRESSES[i]) for i in range(2))
    try:
        for host in made:
            subprocess.run(["ip", "netns", "add", host.name], check=True)
        ends = [f"veth0 netns {made[0].name}", f"veth0 netns {made[1].name}"]
        cable = f"ip link add {ends[0]} type veth peer name {ends[1]}"
        subprocess.run(cable.split(), check=True)
        for host in made:
            host.run(f"ip address add {host.address}/24 dev veth0")
            host.run("ip link set veth0 up")
            host.run("ip link set lo up")
        yield made[0], made[1]
    finally:
        for host in made:
            host.lose_power()
            subprocess.run(["ip", "netns", "delete", host.name], check=True)


@pytest.mark.parametrize("lost", [0, 1], ids=["rendezvous", "other"])
def test_a_host_is_lost_and_comes_back(tmp_path, corpus, whole, hosts, lost):
    run, typed = tmp_path / "run", words(tmp_path, corpus, *STEPS)
    launched = [host.launch(tmp_path / f"{host.name}.log", typed) for host in hosts]
    launched[0].until(lambda: last_step(run) >= 17)
    hosts[lost].lose_power()
    assert launched[lost].wait() == -signal.SIGKILL
    launched[lost] = hosts[lost].launch(tmp_path / "again.log", typed)
    told = "".join(launcher.output for launcher in launched)
    assert [launcher.wait(240) for launcher in launched] == [DONE, DONE], told
    assert sum(launcher.output.count(f"resuming {run} at step") for launcher in launched) == 1
    assert_same_run(run, whole)


def test_told_to_stop_on_one_host(tmp_path, corpus, whole, hosts):
    """Both save; the other waits for it to come back, until it is told as well."""
    run, typed = tmp_path / "run", words(tmp_path, corpus, *STEPS)
    launched = [host.launch(tmp_path / f"{host.name}.log", typed) for host in hosts]
    launched[0].until(lambda: last_step(run) >= 12)
    launched[1].process.send_signal(signal.SIGTERM)
    assert launched[1].wait(30) == INTERRUPTED, launched[1].output
    launched[0].until(lambda: "stopped at step" in launched[0].output)
    launched[0].process.send_signal(signal.SIGTERM)
    assert launched[0].wait(30) == INTERRUPTED, launched[0].output
    again = [host.launch(tmp_path / f"{host.name}-again.log", typed) for host in hosts]
    assert [launcher.wait(240) for launcher in again] == [DONE, DONE]
    assert_same_run(run, whole)


def test_a_host_that_never_comes_back(tmp_path, corpus, hosts):
    typed = words(tmp_path, corpus, *STEPS, "trainer.max_steps=100000")
    launched = [
        host.launch(tmp_path / f"{host.name}.log", typed, MAX_RESTARTS="0") for host in hosts
    ]
    launched[0].until(lambda: last_step(tmp_path / "run") >= 2)
    hosts[1].lose_power()
    assert launched[0].wait(90) == STALLED, launched[0].output
    launched[1].wait()
