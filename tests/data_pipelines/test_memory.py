"""A document larger than memory should be is prepared a piece at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_pipelines.corpora import make_text

SCRIPT = """
import json, resource, sys
import datasets, pyarrow, tokenizers, transformers  # what they take is not ours
from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.prepare import prepare

def prepare_it(paths, cache, kind):
    data = DataConfig(source="text", paths=paths, cache_root=cache, num_processes=1)
    tokenizer = TokenizerConfig(kind=kind, vocab_size=600, train_bytes=200_000)
    return prepare(data, tokenizer, PackingConfig(), sequence_length=65536, progress=False)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

small, large, cache, kind = sys.argv[1:]
prepare_it([small], cache, kind)  # so that everything is imported and allocated once
before = peak()
manifest = prepare_it([large], cache, kind).manifest
print(json.dumps([peak() - before, manifest["bytes"]]))
"""


def grown(tmp_path: Path, megabytes: int, kind: str, spaces: bool) -> float:
    """MB by which preparing one document of so many MB raises the peak of the process."""
    block = make_text(1, 5_000)
    if not spaces:
        block = "".join(block.split())
    (tmp_path / "small.txt").write_text(block)
    raw = block.encode()
    with open(tmp_path / "large.txt", "wb") as file:
        for _ in range(megabytes * 10**6 // len(raw) + 1):
            file.write(raw)
    arguments = [str(tmp_path / name) for name in ("small.txt", "large.txt", "prepared")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments, kind],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    growth, size = json.loads(done.stdout)
    assert size == (tmp_path / "large.txt").stat().st_size
    return float(growth)


@pytest.mark.parametrize("spaces", [True, False], ids=["words", "no_whitespace"])
def test_memory_does_not_grow_with_the_document(tmp_path: Path, spaces: bool) -> None:
    assert grown(tmp_path, 60, "bytes", spaces) < 80


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "megabytes"), [("bytes", 1000), ("bpe", 200)])
def test_a_gigabyte(tmp_path: Path, kind: str, megabytes: int) -> None:
    assert grown(tmp_path, megabytes, kind, spaces=True) < 150
