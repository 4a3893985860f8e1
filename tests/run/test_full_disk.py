"""A disk that fills up costs nothing but the checkpoint that did not fit."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from safetensors import SafetensorError

import lsp.checkpointing.files as files
from lsp.checkpointing.store import CheckpointStore
from lsp.cli.main import main
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE, USER_ERROR
from tests.processes import Session
from tests.run.tiny import assert_same_run, words

TOLD = "the checkpoint could not be written: the disk is full. Earlier checkpoints are untouched: "
TOLD += "make room or set checkpoint.root elsewhere, then run the same command again"


def fail_from(monkeypatch: pytest.MonkeyPatch, module, name: str, call: int, error: Exception):
    """Makes a function fail from its n-th call on."""
    original, calls = getattr(module, name), iter(range(1, 10**6))

    def failing(*args, **kwargs):
        if next(calls) >= call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL_IN_RUST = SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("name", "call", "error"),
    [
        pytest.param("save_file", 4, FULL_IN_RUST, id="weights"),
        pytest.param("save_file", 5, FULL_IN_RUST, id="optimizer"),
        pytest.param("save_file", 6, FULL_IN_RUST, id="generators"),
        pytest.param("seal", 2, FULL, id="manifest"),
        pytest.param("publish", 2, FULL, id="rename"),
    ],
)
def test_full_while_saving(tmp_path, corpus, monkeypatch, capsys, name, call, error):
    if name in ("seal", "publish"):
        import lsp.checkpointing.store as module
    else:
        module = files
    typed = words(tmp_path, corpus)
    with monkeypatch.context() as patch:
        fail_from(patch, module, name, call, error)
        assert main(["train", *typed]) == USER_ERROR
    assert capsys.readouterr().err.splitlines()[-1] == f"lsp: {TOLD}"
    store = CheckpointStore(tmp_path / "run")
    assert store.steps() == [4]
    assert store.latest() == store.path(4)
    assert not list((tmp_path / "run").glob(".step*"))
    if name == "seal":  # room was made
        assert main(["train", *typed]) == DONE
        assert main(["train", *words(tmp_path, corpus, name="whole")]) == DONE
        assert_same_run(tmp_path / "run", tmp_path / "whole")


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_file_size_limit_of_the_system(tmp_path, corpus):
    """The kernel itself refuses the write, in a process of its own."""
    session = Session(
        ["train", *words(tmp_path, corpus)], tmp_path / "log", partial(limit_files, 100_000)
    )
    assert session.wait() == USER_ERROR
    last = session.output.splitlines()[-1]
    assert last.startswith("lsp: the checkpoint could not be written: ")
    assert "File too large" in last
    assert CheckpointStore(tmp_path / "run").steps() == []
    assert not list((tmp_path / "run").glob(".step*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds one checkpoint and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_real_full_disk(small_disk, corpus, capsys):
    assert main(["train", *words(small_disk, corpus)]) == USER_ERROR
    assert capsys.readouterr().err.splitlines()[-1] == f"lsp: {TOLD}"
    store = CheckpointStore(small_disk / "run")
    assert store.latest() == store.path(4)
    assert not list((small_disk / "run").glob(".step*"))


def test_old_checkpoint_that_cannot_be_deleted_is_told(tmp_path, corpus, monkeypatch, capsys):
    def denied(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr("lsp.checkpointing.store.remove", denied)
    assert main(["train", *words(tmp_path, corpus, "checkpoint.keep_last=1")]) == DONE
    assert "an old checkpoint could not be deleted: " in capsys.readouterr().err
    assert CheckpointStore(tmp_path / "run").steps() == [4, 8, 12]


def test_full_disk_after_the_last_checkpoint(tmp_path, corpus, monkeypatch, capsys):
    """The run is safe: its exit code says so, whatever becomes of the picture."""
    monkeypatch.setattr("lsp.run.finish.plot_losses", lambda *_: (_ for _ in ()).throw(FULL))
    assert main(["train", *words(tmp_path, corpus, "trainer.max_steps=3")]) == DONE
    assert "lsp: loss.png: No space left on device" in capsys.readouterr().err


def test_a_sample_that_cannot_be_made_is_not_missed(tmp_path, corpus, monkeypatch, capsys):
    def refuse(config):
        raise UserError("the prompt is empty")

    monkeypatch.setattr("lsp.run.finish.sample", refuse)
    typed = words(tmp_path, corpus, "trainer.max_steps=3", "trainer.sample_tokens=5")
    assert main(["train", *typed]) == DONE
    out = capsys.readouterr().out
    assert "none: the prompt is empty" in out
    assert "lsp evaluate run=" in out


def test_unreadable_checkpoint(tmp_path, corpus, monkeypatch, capsys):
    typed = words(tmp_path, corpus, "trainer.max_steps=3")
    assert main(["train", *typed]) == DONE

    def broken(*_):
        raise SafetensorError("header too large")

    monkeypatch.setattr("lsp.checkpointing.snapshot.read_tensors", broken)
    assert main(["train", *words(tmp_path, corpus, "trainer.max_steps=5")]) == USER_ERROR
    last = capsys.readouterr().err.splitlines()[-1]
    assert "step-00000003 cannot be read: header too large" in last
