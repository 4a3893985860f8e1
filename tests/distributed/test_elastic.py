"""A checkpoint goes on at any number of processes under any strategy: same batches, same curve."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from lsp.checkpointing.store import CheckpointStore
from lsp.core.exit_codes import DONE
from lsp.tracking.tracker import read_rows
from tests.distributed.spawn import environment, free_port
from tests.processes import Session
from tests.run.tiny import LONGFORMER, REMEMBERING, tensors, words, write_corpus

ROWS, LENGTH = 12, 128  # rows that 1, 2, 3 and 4 processes can share
LENGTHS = (f"tokens_per_step={ROWS * LENGTH}", f"sequence_length={LENGTH}")


def record_batches(folder: Path) -> None:
    """Makes a process write down what every sample of its batches consists of."""
    from lsp.data.batches import OBJECTIVE_STREAM, BatchMaker

    original = BatchMaker.make
    path = folder / f"batches-{os.environ['RANK']}.jsonl"

    def make(maker, rows, keys):  # type: ignore[no-untyped-def]
        batch = original(maker, rows, keys)
        with path.open("a") as file:
            for number, (stream, sample, *_) in enumerate(keys):
                if stream == OBJECTIVE_STREAM:
                    parts = batch.rows(number, number + 1).tensors().values()
                    content = b"".join(part.numpy().tobytes() for part in parts)
                    entry = {"sample": sample, "digest": hashlib.sha256(content).hexdigest()}
                    file.write(json.dumps(entry) + "\n")
        return batch

    BatchMaker.make = make  # type: ignore[method-assign]


class Training:
    """One training of some steps, by so many processes.

    Args:
        folder: Where it lies; `begin` is copied there.
        corpus: What is trained on.
        strategy: Of parallelism.
        processes: How many there are.
        begin: A training whose checkpoint is continued.
        step: Of that checkpoint.
        overrides: More words on the command line.
    """

    def __init__(
        self,
        folder: Path,
        corpus: Path,
        strategy: str,
        processes: int,
        begin: Training | None = None,
        step: int = 0,
        overrides: tuple[str, ...] = (),
    ) -> None:
        self.folder, self.run, self.first = folder, folder / "run", step
        folder.mkdir()
        if begin is not None:
            self._copy(begin, step)
        typed = words(
            folder,
            corpus,
            *LENGTHS,
            "checkpoint.keep_last=9",
            f"parallelism={strategy}",
            "parallelism.param_persistence_threshold=0",
            *overrides,
        )
        port = free_port()
        self.sessions = [
            Session(
                ["train", *typed],
                folder / f"{rank}.log",
                partial(record_batches, folder),
                environment(rank, processes, port),
            )
            for rank in range(processes)
        ]

    def _copy(self, begin: Training, step: int) -> None:
        shutil.copytree(begin.run, self.run, ignore=shutil.ignore_patterns(".lock", "step-*"))
        name = CheckpointStore(begin.run).path(step).name
        shutil.copytree(begin.run / name, self.run / name)

    def wait(self) -> Training:
        codes = [session.wait(240) for session in self.sessions]
        assert codes == [DONE] * len(codes), self.sessions[0].output
        if self.first:
            assert f"resuming {self.run} at step {self.first}" in self.sessions[0].output
        return self

    @property
    def losses(self) -> dict[int, float]:
        return {row["step"]: row["loss"] for row in read_rows(self.run / "metrics.jsonl")}

    @property
    def validation(self) -> list[float]:
        rows = read_rows(self.run / "metrics.jsonl")
        return [row["validation_loss"] for row in rows if "validation_loss" in row]

    @property
    def batches(self) -> dict[int, str]:
        """Digest of every sample that it consumed."""
        found: dict[int, str] = {}
        for path in self.folder.glob("batches-*.jsonl"):
            for entry in map(json.loads, path.read_text().splitlines()):
                assert found.setdefault(entry["sample"], entry["digest"]) == entry["digest"]
        end = 12 * ROWS  # one more step is prepared while the last one trains
        return {sample: digest for sample, digest in found.items() if sample < end}


def assert_continues(found: Training, whole: Training) -> None:
    """Identical batches from where it began, and the curve of the uninterrupted run."""
    samples = range(found.first * ROWS, 12 * ROWS)
    assert sorted(found.batches) == list(samples)
    assert found.batches == {sample: whole.batches[sample] for sample in samples}
    assert found.losses.keys() == whole.losses.keys() == set(range(1, 13))
    for step, loss in whole.losses.items():
        assert found.losses[step] == pytest.approx(loss, rel=0, abs=1e-5)
    assert found.validation == pytest.approx(whole.validation, rel=0, abs=1e-5)
    expected = tensors(whole.run)
    ours = tensors(found.run)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith("/step"):
            assert torch.equal(ours[name], value)
        else:
            torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-3, msg=name)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("shared") / "corpus")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Training:
    """The uninterrupted run: 12 steps of ZeRO-3 on two processes."""
    return Training(tmp_path_factory.mktemp("sharded") / "two", corpus, "zero3", 2).wait()


def test_two_then_three_then_one(tmp_path, corpus, sharded):
    """ZeRO-3 on two processes → ZeRO-2 on three → one process alone."""
    three = Training(tmp_path / "three", corpus, "zero2", 3, begin=sharded, step=4).wait()
    assert_continues(three, sharded)
    written = {path.name for path in (three.run / "step-00000008").iterdir()}
    assert {f"model-{n:05d}.safetensors" for n in (1, 2, 3)} < written
    one = Training(tmp_path / "one", corpus, "ddp", 1, begin=three, step=8).wait()
    assert_continues(one, sharded)


@pytest.mark.parametrize(
    ("model", "strategy", "degree"),
    [
        pytest.param(REMEMBERING, "zero2", 1, id="memory"),
        pytest.param(REMEMBERING, "ddp", 2, id="memory-shared", marks=pytest.mark.slow),
        pytest.param(LONGFORMER, "zero3", 1, id="longformer", marks=pytest.mark.slow),
    ],
)
def test_one_then_two_then_one(tmp_path, corpus, model, strategy, degree):
    """Also what a Transformer-XL remembers is found again by whoever reads on."""
    overrides = (
        *(word for word in model if "drop" not in word),  # masks are those of a micro-batch
        *LENGTHS,
        "checkpoint.every=3",  # step 8 ends an epoch, after which nothing is remembered
    )
    whole = Training(tmp_path / "whole", corpus, "single", 1, overrides=overrides).wait()
    shared = (*overrides, f"parallelism.sequence={degree}")
    two = Training(tmp_path / "two", corpus, strategy, 2, whole, step=3, overrides=shared).wait()
    assert_continues(two, whole)
    written = {path.name for path in (two.run / "step-00000006").glob("memory-*")}
    writers = range(2 // degree) if model is REMEMBERING else ()
    assert written == {f"memory-{rank:05d}.safetensors" for rank in writers}
    one = Training(tmp_path / "one", corpus, "ddp", 1, two, step=6, overrides=overrides).wait()
    assert_continues(one, whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
@pytest.mark.parametrize("processes", [1, 3, 4])
def test_there_and_back(tmp_path, corpus, sharded, strategy, processes):
    """ZeRO-3 on two processes → another strategy on so many → ZeRO-3 on two."""
    there = Training(tmp_path / "there", corpus, strategy, processes, begin=sharded, step=4).wait()
    assert_continues(there, sharded)
    back = Training(tmp_path / "back", corpus, "zero3", 2, begin=there, step=8).wait()
    assert_continues(back, sharded)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "processes"), [("ddp", 2), ("zero3", 4)])
def test_to_shared_positions_and_back(tmp_path, corpus, sharded, strategy, processes):
    """Whole rows on two processes → rows shared by two → whole rows again."""
    overrides = ("parallelism.sequence=2",)
    there = Training(
        tmp_path / "there", corpus, strategy, processes, sharded, step=4, overrides=overrides
    )
    assert_continues(there.wait(), sharded)
    back = Training(tmp_path / "back", corpus, "zero2", 2, begin=there, step=8).wait()
    assert_continues(back, sharded)
