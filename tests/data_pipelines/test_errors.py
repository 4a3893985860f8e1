"""Every mistake gets one or two lines that name the key or the file."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.errors import DataError
from data_pipelines.prepare import PreparedData
from tests.data_pipelines.corpora import make_text

Prepare = Callable[..., PreparedData]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DataConfig(source="jsnl"), r"data.source=jsnl .*did you mean 'jsonl'\? choose"),
        (lambda: DataConfig(source="text"), r"data.paths is empty.*data.paths=\[corpus/\*.txt\]"),
        (lambda: DataConfig(paths=["a"]), r"data.paths=\['a'\] is not read .*data=text"),
        (lambda: DataConfig(source="hub_dataset"), r"data.name is missing"),
        (lambda: DataConfig(document="page"), r"data.document=page .*file, line, paragraph"),
        (lambda: DataConfig(encoding_errors="drop"), r"data.encoding_errors=drop"),
        (lambda: DataConfig(max_documents=0), r"data.max_documents=0: give 1 or more"),
        (lambda: DataConfig(max_bytes=-1), r"data.max_bytes=-1"),
        (lambda: DataConfig(validation_fraction=1.0), r"data.validation_fraction=1.0: .*below 1"),
        (lambda: DataConfig(num_processes=-1), r"data.num_processes=-1"),
        (lambda: DataConfig(unit_bytes=0), r"data.unit_bytes=0"),
        (lambda: DataConfig(field=""), r"data.field is empty"),
        (lambda: DataConfig(cache_root=""), r"data.cache_root is empty"),
        (lambda: TokenizerConfig(kind="byte"), r"tokenizer.kind=byte .*'bytes'"),
        (
            lambda: TokenizerConfig(kind="bpe", vocab_size=256),
            r"tokenizer.vocab_size=256 is too small .*more than 260",
        ),
        (lambda: TokenizerConfig(kind="word", vocab_size=4), r"tokenizer.vocab_size=4"),
        (lambda: TokenizerConfig(kind="pretrained"), r"tokenizer.name is missing"),
        (lambda: TokenizerConfig(train_bytes=0), r"tokenizer.train_bytes=0"),
        (lambda: PackingConfig(strategy="best-fit"), r"packing.strategy=best-fit .*'best_fit'"),
        (lambda: PackingConfig(shard_megabytes=0), r"packing.shard_megabytes=0"),
    ],
)
def test_configs_check_themselves(build: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        build()
    assert str(caught.value).count("\n") <= 1


@pytest.mark.parametrize("config", [DataConfig, TokenizerConfig, PackingConfig])
def test_configs_are_structured_configs(config: type) -> None:
    from omegaconf import OmegaConf

    assert OmegaConf.to_object(OmegaConf.structured(config)) == config()


@pytest.mark.parametrize("processes", [1, 2], ids=["here", "in_processes"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"body": "x", "id": 1}', r"3 has no field 'text' \(data.field\): it has body, id$"),
        (b'{"text": 5}', r"3: field 'text' is int, not text"),
        (b'["x"]', r"3 is a list, not an object with field 'text'"),
        (b'{"text": "x"', r"3 is not JSON: "),
        (b'{"text": ' + b"9" * 5000 + b"}", r"3 is not JSON: "),
        (b"[" * 100_000, r"3 is nested too deeply"),
        (b'{"text": "\xff"}', r"3: invalid UTF-8"),
    ],
    ids=["no_field", "not_text", "not_object", "not_json", "huge_number", "deep", "utf8"],
)
def test_bad_lines(
    prepare_text: Prepare, tmp_path: Path, line: bytes, message: str, processes: int
) -> None:
    good = json.dumps({"text": "good"}).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, good, line, good, good]))
    with pytest.raises(DataError, match=f"a.jsonl:{message}"):
        prepare_text(
            source="jsonl",
            paths=[str(tmp_path / "a.jsonl")],
            encoding_errors="strict",
            unit_bytes=30,
            num_processes=processes,
        )


def refused(prepare_text: Prepare, message: str, **kwargs: Any) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepare_text(**kwargs)
    assert str(caught.value).count("\n") <= 1


def test_no_match(prepare_text: Prepare, tmp_path: Path) -> None:
    pattern = str(tmp_path / "*.txt")
    refused(prepare_text, r"data.paths: .*\*.txt matches no file", paths=[pattern])
    (tmp_path / "empty").mkdir()
    refused(prepare_text, r"empty matches no file", paths=[str(tmp_path / "empty")])


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_no_documents(prepare_text: Prepare, tmp_path: Path, kind: str) -> None:
    for number in range(3):
        (tmp_path / f"{number}.{kind}").write_text("")
    refused(prepare_text, "has no documents", source=kind, paths=[str(tmp_path / f"*.{kind}")])


def test_every_document_skipped(prepare_text: Prepare, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_bytes(b"\xfe")
    message = "has no documents: 0 are empty, 2 skipped for invalid UTF-8"
    refused(prepare_text, message, paths=[str(tmp_path)], encoding_errors="skip")


def test_one_record_cannot_be_divided(prepare_text: Prepare, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "only"}')
    refused(
        prepare_text,
        "data.validation_fraction=0.05 needs two different documents",
        source="jsonl",
        paths=[str(tmp_path)],
    )


def test_strict_names_the_file(prepare_text: Prepare, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good")
    (tmp_path / "b.txt").write_bytes(b"b\xffd")
    message = r"b.txt: invalid UTF-8 .*data.encoding_errors=replace, ignore or skip"
    refused(prepare_text, message, paths=[str(tmp_path)], encoding_errors="strict")


def test_length_that_does_not_fit(prepare_text: Prepare, corpus: Path) -> None:
    refused(
        prepare_text,
        "sequence_length=100 is not a multiple of 64: the nearest that fit: 64 and 128",
        paths=[str(corpus)],
        sequence_length=100,
        length_multiple=64,
    )


def test_bad_gzip(prepare_text: Prepare, tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(b"not compressed at all")
    refused(prepare_text, r"a.txt.gz cannot be read: Not a gzipped file", paths=[str(tmp_path)])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"body": ["x"]}, r"has no column 'text' \(data.field\): it has body"),
        ({"text": [1]}, r"column 'text' is int64, not text"),
        (None, r"is not a parquet file"),
    ],
    ids=["no_column", "not_text", "not_parquet"],
)
def test_bad_parquet(
    prepare_text: Prepare, tmp_path: Path, table: dict[str, list[Any]] | None, message: str
) -> None:
    if table is None:
        (tmp_path / "a.parquet").write_text("nonsense")
    else:
        pq.write_table(pa.table(table), tmp_path / "a.parquet")
    refused(prepare_text, message, source="parquet", paths=[str(tmp_path)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "no/such/folder"}, r"data.name=no/such/folder .*cannot be loaded: "),
        ({"split": "test"}, r"split=test\) cannot be loaded: .*test"),
        ({"field": "body"}, r"data.field=body is not a column of .*: it has text"),
    ],
    ids=["name", "split", "field"],
)
def test_bad_hub_dataset(
    prepare_text: Prepare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    message: str,
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    refused(prepare_text, message, **{"source": "hub_dataset", "name": str(folder), **settings})


def test_cache_root_that_cannot_be_a_folder(prepare_text: Prepare, corpus: Path) -> None:
    cache = corpus / "000.txt"
    refused(
        prepare_text,
        r"data.cache_root=.*000.txt cannot be written",
        paths=[str(corpus)],
        cache_root=str(cache),
    )


def test_unreadable_file(
    prepare_text: Prepare, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus / "000.txt").chmod(0)
    if os.geteuid() == 0:  # root may read everything
        monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("000.txt"))
    refused(prepare_text, r"000.txt cannot be read: check its permissions", paths=[str(corpus)])


FULL_DISK = """
import resource, sys
from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare

def run():
    data = DataConfig(source="text", paths=[sys.argv[1]], cache_root=sys.argv[2],
                      num_processes=int(sys.argv[3]), unit_bytes=200_000)
    return prepare(data, TokenizerConfig(), PackingConfig(), sequence_length=1024, progress=False)

resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    run()
except DataError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
print(run().manifest["splits"]["train"]["rows"] > 100)
"""


@pytest.mark.parametrize("processes", [1, 2], ids=["here", "in_processes"])
def test_full_disk(tmp_path: Path, processes: int) -> None:
    """The limit on the size of files stands for the disk: both fail in the middle of a write."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    (tmp_path / "a.txt").write_text(make_text(1, 100_000))
    arguments = [str(tmp_path / "a.txt"), str(tmp_path / "prepared"), str(processes)]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"no space left under data.cache_root={tmp_path}/prepared")
    assert second == "True"
