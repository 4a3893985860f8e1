"""`make` on a fresh machine, told without installing anything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import lsp

ROOT = Path(lsp.__file__).resolve().parents[1]
TARGETS = ("setup", "check", "test", "test-all", "test-gpu", "bench", "train", "clean")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(cwd: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )


@pytest.fixture
def checkout(tmp_path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("words", [(), ("help",)], ids=["alone", "help"])
def test_help_lists_every_target(words, checkout):
    out = make(checkout, *words).stdout
    for target in TARGETS:
        assert f"  make {target} " in out


@pytest.mark.parametrize("target", ["train", "test", "check", "test-all", "test-gpu", "bench"])
def test_every_target_installs_first_and_only_once(target, checkout):
    fresh = make(checkout, "-n", target).stdout
    assert "pip install" in fresh
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".installed").touch()
    assert "pip install" not in make(checkout, "-n", target).stdout
    os.utime(checkout / "pyproject.toml", (2**31, 2**31))
    assert "pip install" in make(checkout, "-n", target).stdout


def test_no_suitable_python_is_told(checkout, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "sh", "touch"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    done = make(checkout, "setup", PATH=str(tools))
    assert done.returncode != 0
    assert "PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_python_can_be_chosen(checkout):
    """A stand-in for Python and pip writes down what it is asked to do."""
    log = checkout / "log"
    fake = checkout / "fake-python"
    fake.write_text(
        "#!/bin/sh\n"
        f'echo "$DS_BUILD_OPS $*" >> {log}\n'
        f'case "$*" in *"-m venv"*) mkdir -p .venv/bin; cp {fake} .venv/bin/python;; esac\n'
    )
    fake.chmod(0o755)
    done = make(checkout, "setup", f"PYTHON={fake}")
    assert done.returncode == 0, done.stderr
    asked = log.read_text().splitlines()
    assert asked[-2] == "0 -m venv --clear .venv"
    assert asked[-1].startswith("0 -m pip install")
    assert (checkout / ".venv" / ".installed").is_file()
    log.unlink()
    assert make(checkout, "setup", f"PYTHON={fake}").returncode == 0
    assert not log.exists()  # the second time, nothing


def test_a_failed_installation_is_tried_again(checkout):
    fake = checkout / "fake-python"
    fake.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *"-m venv"*) mkdir -p .venv/bin; cp {fake} .venv/bin/python;;'
        ' *"-m pip"*) exit 1;; esac\n'
    )
    fake.chmod(0o755)
    for _ in range(2):
        assert make(checkout, "setup", f"PYTHON={fake}").returncode != 0
        assert not (checkout / ".venv" / ".installed").exists()


def test_ci_is_check_and_test(checkout):
    (checkout / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", checkout / ".ci" / "run")
    tools = checkout / "tools"
    tools.mkdir()
    (tools / "make").write_text(f'#!/bin/sh\necho "$PWD $*" >> {checkout}/log\n')
    (tools / "make").chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run([str(checkout / ".ci" / "run")], cwd="/", env=env, check=True)
    assert (checkout / "log").read_text() == f"{checkout} check\n{checkout} test\n"
