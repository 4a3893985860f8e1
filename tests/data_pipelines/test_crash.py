"""Killed at any moment, started twice at once: one result, and the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.config import TokenizerConfig
from data_pipelines.prepare import PreparedData
from tests.data_pipelines.corpora import make_text, rows_of

Prepare = Callable[..., PreparedData]

SCRIPT = """
import json, sys
from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.prepare import prepare

values = json.loads(sys.argv[1])
prepared = prepare(DataConfig(**values), TokenizerConfig(kind="bpe", vocab_size=400),
                   PackingConfig(), sequence_length=256)
print(prepared.path)
"""


def start(values: dict[str, object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(values)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(make_text(number, 9_000))
    return {
        "source": "text",
        "paths": [str(folder)],
        "cache_root": str(tmp_path / "killed"),
        "unit_bytes": 30_000,
        "num_processes": 2,
    }


def children(process: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(entry.parent.name))
    return found


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_kill_and_start_again(
    settings: dict[str, object], prepare_text: Prepare, tmp_path: Path
) -> None:
    root = Path(str(settings["cache_root"]))
    counts = []
    for enough in (3, 9):
        process = start(settings)
        while len(units := list(root.glob("*.staging/units/0*[!p]"))) < enough:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 10
        while not all(map(gone, workers)):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.01)
        assert len(workers) == 2
        counts.append(len(units))
        assert not [path for path in root.iterdir() if path.suffix != ".staging"]
    kept = {path: path.stat().st_ino for path in root.glob("*.staging/units/0*[!p]")}
    assert len(kept) >= counts[1] > counts[0]

    finished = start(settings)
    out, err = finished.communicate()
    assert finished.returncode == 0, err
    assert f"{len(kept)} of " in err
    assert [path.name for path in root.iterdir()] == [Path(out.strip()).name]

    whole = prepare_text(
        **{**settings, "num_processes": 1, "cache_root": str(tmp_path / "whole")},
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=400),
        sequence_length=256,
    )
    for name in ("train", "validation"):
        ours, theirs = whole.path / name, Path(out.strip()) / name
        for path in ours.iterdir():
            assert path.read_bytes() == (theirs / path.name).read_bytes(), path.name
    assert rows_of(whole)


def test_a_half_packed_split_is_completed(
    prepare_text: Prepare, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipelines import shards, stages

    class Killed(BaseException):
        pass

    def killed(*args: object) -> None:
        raise Killed

    def run() -> PreparedData:
        return prepare_text(paths=[str(corpus)])

    for module, name in (
        (shards, "_batch"),
        (shards, "_write_dataset_files"),
        (stages, "write_json"),
        (stages, "commit"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            with pytest.raises(Killed):
                run()
        assert not [path for path in (corpus.parent / "prepared").iterdir() if not path.suffix]
    interrupted = rows_of(run())
    whole = prepare_text(paths=[str(corpus)], cache_root=str(corpus.parent / "whole"))
    assert rows_of(whole) == interrupted


def test_two_at_once_do_the_work_once(settings: dict[str, object]) -> None:
    processes = [start(settings) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    said = "".join(err for _, err in outputs)
    assert said.count("learning a bpe vocabulary") == 1
    assert len(list(Path(str(settings["cache_root"])).iterdir())) == 1


def test_a_killed_worker_is_told(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch, prepare_text: Prepare
) -> None:
    from data_pipelines import pool
    from data_pipelines.errors import DataError

    begin = pool._start

    def start_and_kill(job: dict[str, object]) -> subprocess.Popen[str]:
        worker = begin(job)
        os.kill(worker.pid, signal.SIGKILL)
        return worker

    monkeypatch.setattr(pool, "_start", start_and_kill)
    with pytest.raises(DataError, match=r"was killed by signal 9.*data.num_processes"):
        prepare_text(**settings)
    monkeypatch.undo()
    assert prepare_text(**settings).manifest["documents"] == 12
