from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines import progress
from data_pipelines.progress import Progress


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with Progress(enabled=True) as told:
        told.say("preparing")
        told.stage("tokenizing", "MB", 4_000_000, done=1_000_000)
        told.advance(1_000_000)
        told.stage("packing train", "rows", None)
        told.advance(1234)
    assert capsys.readouterr().err.splitlines() == [
        "preparing",
        "tokenizing: 2 of 4 MB after 0 seconds",
        "packing train: 1,234 rows after 0 seconds",
    ]


def test_nothing_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(enabled=False) as told:
        told.say("preparing")
        told.stage("tokenizing", "MB", None)
        told.advance(1)
    assert capsys.readouterr() == ("", "")


SCRIPT = """
import sys
from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.prepare import prepare

data = DataConfig(source="text", paths=[sys.argv[1]], cache_root=sys.argv[2], num_processes=1)
prepare(data, TokenizerConfig(), PackingConfig(), sequence_length=64)
"""


def test_a_bar_in_a_terminal(corpus: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = [str(corpus), str(tmp_path / "prepared")]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], stderr=theirs, check=True, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how Linux says that a terminal has no more
        pass
    os.close(ours)
    assert b"preparing" in shown
    assert "━".encode() in shown
    assert b"packing" in shown
