"""Every kind of source gives the same documents, however it is divided."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.config import DataConfig, PackingConfig
from data_pipelines.prepare import PreparedData
from data_pipelines.sources import list_files, plan
from tests.data_pipelines.corpora import make_text, rows_of, texts_of

Prepare = Callable[..., PreparedData]
TEXTS = [make_text(seed, 40 + 13 * seed % 71) for seed in range(60)] + ["same", "same", "x"]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` caches what it loads: not in the home of whoever runs the tests."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


def write_jsonl(folder: Path, texts: list[str] = TEXTS) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(texts)]
    (folder / "a.jsonl").write_text("\n".join(lines[:40]))  # no line break at the end
    (folder / "b.jsonl").write_text("\n\n".join(lines[40:]) + "\n")
    return folder


def all_texts(prepared: PreparedData) -> Counter[str]:
    return Counter(texts_of(prepared, "train") + texts_of(prepared, "validation"))


CONCATENATE = PackingConfig(strategy="concatenate")


@pytest.mark.parametrize("unit_bytes", [301, 1000, 2**20], ids=lambda n: f"units_of_{n}")
def test_jsonl(prepare_text: Prepare, tmp_path: Path, unit_bytes: int) -> None:
    folder = write_jsonl(tmp_path / "corpus")
    prepared = prepare_text(
        source="jsonl", paths=[str(folder)], unit_bytes=unit_bytes, packing=CONCATENATE
    )
    assert all_texts(prepared) == Counter(TEXTS)


@pytest.mark.parametrize("unit_bytes", [7, 64, 2**20], ids=lambda n: f"units_of_{n}")
def test_lines(prepare_text: Prepare, tmp_path: Path, unit_bytes: int) -> None:
    lines = ["first", "", "second line", "é 漢字", "x" * 100, "", "last"]
    (tmp_path / "a.txt").write_bytes("\r\n".join(lines).encode() + b"\n")
    prepared = prepare_text(
        paths=[str(tmp_path / "a.txt")],
        document="line",
        unit_bytes=unit_bytes,
        packing=CONCATENATE,
    )
    assert all_texts(prepared) == Counter(line for line in lines if line)
    assert prepared.manifest["empty_documents"] == 2


def test_paragraphs(prepare_text: Prepare, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\none\none\n \n\ntwo\n\nthree")
    prepared = prepare_text(
        paths=[str(tmp_path / "a.txt")], document="paragraph", unit_bytes=3, packing=CONCATENATE
    )
    assert all_texts(prepared) == Counter(["one\none", "two", "three"])


@pytest.mark.parametrize("unit_bytes", [1, 2000, 2**20], ids=lambda n: f"units_of_{n}")
def test_parquet(prepare_text: Prepare, tmp_path: Path, unit_bytes: int) -> None:
    table = pa.table({"other": range(len(TEXTS) + 1), "body": [*TEXTS, None]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    prepared = prepare_text(
        source="parquet",
        paths=[str(tmp_path / "*.parquet")],
        field="body",
        unit_bytes=unit_bytes,
        packing=CONCATENATE,
    )
    assert all_texts(prepared) == Counter(TEXTS)
    assert prepared.manifest["empty_documents"] == 1


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
@pytest.mark.parametrize("name", ["folder", "json"])
def test_hub_dataset(prepare_text: Prepare, tmp_path: Path, name: str, streaming: bool) -> None:
    folder = write_jsonl(tmp_path / "corpus")
    location = (
        {"name": str(folder)} if name == "folder" else {"name": "json", "paths": [f"{folder}/*"]}
    )
    prepared = prepare_text(
        source="hub_dataset",
        streaming=streaming,
        unit_bytes=2000,
        packing=CONCATENATE,
        **location,
    )
    assert all_texts(prepared) == Counter(TEXTS)


def test_hub_dataset_in_several_processes(
    prepare_text: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = write_jsonl(tmp_path / "corpus")
    found = [
        rows_of(
            prepare_text(
                source="hub_dataset",
                name=str(folder),
                unit_bytes=2000,
                num_processes=processes,
                cache_root=str(tmp_path / f"with_{processes}"),
            )
        )
        for processes in (1, 2)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_gzip(prepare_text: Prepare, tmp_path: Path, kind: str) -> None:
    for number in range(3):
        text = TEXTS[number]
        raw = text if kind == "text" else "\n".join(json.dumps({"text": t}) for t in TEXTS)
        with gzip.open(tmp_path / f"{number}.{kind}.gz", "wt", newline="") as file:
            file.write(raw)
    prepared = prepare_text(
        source=kind, paths=[str(tmp_path / "*.gz")], unit_bytes=10, packing=CONCATENATE
    )
    expected = Counter(TEXTS[:3]) if kind == "text" else Counter(TEXTS * 3)
    assert all_texts(prepared) == expected


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize(
    ("limit", "documents"),
    [({"max_documents": 17}, 17), ({"max_bytes": 5000}, None), ({"max_documents": 10**6}, 63)],
    ids=["documents", "bytes", "beyond_the_end"],
)
def test_limits_on_records(
    prepare_text: Prepare,
    tmp_path: Path,
    limit: dict[str, int],
    documents: int | None,
    processes: int,
) -> None:
    folder = write_jsonl(tmp_path / "corpus")
    if documents is None:
        sizes = [len(text.encode()) for text in TEXTS]
        documents = next(n for n in range(len(TEXTS)) if sum(sizes[:n]) >= 5000)
    prepared = prepare_text(
        source="jsonl",
        paths=[str(folder)],
        unit_bytes=700,
        num_processes=processes,
        shuffle_documents=False,
        validation_fraction=0.0,
        packing=CONCATENATE,
        **limit,
    )
    assert texts_of(prepared, "train") == TEXTS[:documents]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("replace", ["a\ufffdb", "c", "\ufffd\ufffd\ufffdd"]), ("ignore", ["ab", "c", "d"]),
     ("skip", ["c"])],
)  # fmt: skip
def test_jsonl_with_invalid_utf8(
    prepare_text: Prepare, tmp_path: Path, policy: str, expected: list[str]
) -> None:
    lines = [b'{"text": "a\xffb"}', b'\xef\xbb\xbf{"text": "c"}', b'{"text": "\\ud800d"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    prepared = prepare_text(
        source="jsonl",
        paths=[str(tmp_path / "a.jsonl")],
        encoding_errors=policy,
        validation_fraction=0.0,
        packing=CONCATENATE,
    )
    assert sorted(texts_of(prepared, "train")) == sorted(expected)
    assert prepared.manifest["invalid_utf8"] == (2 if policy == "skip" else 4)


def test_paths_may_be_folders_globs_and_repeated(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt", "deep/er/c.txt", "deep/.hidden"):
        (tmp_path / name).write_text(name)

    def found(*paths: str) -> list[str]:
        files = list_files(DataConfig(source="text", paths=[f"{tmp_path}/{p}" for p in paths]))
        return [str(Path(file.path).relative_to(tmp_path)) for file in files]

    everything = ["a.txt", "deep/b.txt", "deep/er/c.txt"]
    assert found("") == everything
    assert found("**/*.txt") == everything
    assert found("deep/er/c.txt", "deep") == ["deep/er/c.txt", "deep/b.txt"]


def test_a_folder_may_hold_what_is_prepared_from_it(prepare_text: Prepare, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text")
    (tmp_path / "b.txt").write_text("another")
    first = prepare_text(paths=[str(tmp_path)])
    assert prepare_text(paths=[str(tmp_path)]).path == first.path
    assert first.manifest["documents"] == 2


def test_the_plan_covers_each_byte_once(tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_text(make_text(1, 5000))
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("x" * 100 * number)
    data = DataConfig(source="text", paths=[str(tmp_path)], unit_bytes=5000)
    units = plan(data)
    assert [unit.number for unit in units] == list(range(len(units)))
    assert plan(data) == units
    covered: dict[str, int] = {}
    for span in (span for unit in units for span in unit.spans):
        assert span.start == covered.get(span.path, 0)
        covered[span.path] = span.stop
    assert covered == {str(path): path.stat().st_size for path in tmp_path.iterdir()}
    assert all(unit.size <= 5000 * 5 // 4 + 100 for unit in units)
