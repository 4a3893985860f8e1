"""From documents to packed rows and back."""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.errors import DataError
from data_pipelines.manifest import content_digest
from data_pipelines.prepare import PreparedData, fingerprint, open_prepared, prepare
from tests.data_pipelines.corpora import make_text, rows_of, texts_of

Prepare = Callable[..., PreparedData]


def expected_texts(corpus: Path) -> Counter[str]:
    return Counter(path.read_bytes().decode() for path in corpus.iterdir())


@pytest.mark.parametrize("strategy", ["concatenate", "best_fit"])
def test_every_document_comes_back(prepare_text: Prepare, corpus: Path, strategy: str) -> None:
    prepared = prepare_text(
        paths=[str(corpus)],
        packing=PackingConfig(strategy=strategy),
        sequence_length=2**16,  # longer than any document, so pieces stay in order
        validation_fraction=0.2,
    )
    train, validation = (texts_of(prepared, name) for name in ("train", "validation"))
    assert Counter(train + validation) == expected_texts(corpus)
    assert 2 <= len(validation) <= 16
    for name, texts in (("train", train), ("validation", validation)):
        split = prepared.manifest["splits"][name]
        assert split["documents"] == len(texts)
        assert split["bytes"] == sum(len(text.encode()) for text in texts)
        assert split["characters"] == sum(map(len, texts))
        assert split["words"] == sum(len(text.encode().split()) for text in texts)
        assert split["tokens"] == split["bytes"] + len(texts)
        assert split["eos_tokens"] == len(texts)
        counts = Counter("".join(texts).encode())
        entropy = -sum(c / counts.total() * math.log2(c / counts.total()) for c in counts.values())
        assert split["order0_bits_per_byte"] == pytest.approx(entropy, abs=1e-12)


@pytest.mark.parametrize("strategy", ["concatenate", "best_fit", "one_per_row"])
def test_rows_segments_and_manifest_agree(
    prepare_text: Prepare, corpus: Path, strategy: str
) -> None:
    packing = PackingConfig(strategy=strategy, align_documents=True)
    prepared = prepare_text(paths=[str(corpus)], packing=packing, length_multiple=16)
    for name, stated in prepared.manifest["splits"].items():
        split = prepared.split(name)
        assert len(split) == stated["rows"]
        padding = tokens = 0
        for index in range(len(split)):
            ids, segments = split.row(index)
            assert ids.shape == segments.shape == (128,)
            assert ids.dtype == np.uint16
            assert segments.dtype == np.int32
            assert (ids[segments == 0] == 0).all()
            assert (ids[segments > 0] != 0).all()
            present = [number for number in dict.fromkeys(segments.tolist()) if number]
            assert present == list(range(1, len(present) + 1))
            starts, lengths = split.documents(index)
            assert (starts % 16 == 0).all()
            assert [int((segments == n).sum()) for n in present] == lengths.tolist()
            padding += int((segments == 0).sum())
            tokens += int((segments > 0).sum())
        assert tokens == stated["tokens"]
        assert stated["padding_share"] == pytest.approx(padding / (128 * len(split)))
    total = prepared.manifest["tokens"] + sum(
        split["tokens_dropped"] for split in prepared.manifest["splits"].values()
    )
    assert total == sum(s["tokens"] for s in prepared.manifest["sources"].values())


def test_one_per_row_counts_what_it_drops(prepare_text: Prepare, tmp_path: Path) -> None:
    for name, size in (("a", 5), ("b", 200)):
        (tmp_path / f"{name}.txt").write_text(name * size)
    prepared = prepare_text(
        paths=[str(tmp_path / "*.txt")],
        packing=PackingConfig(strategy="one_per_row"),
        validation_fraction=0.0,
    )
    train = prepared.manifest["splits"]["train"]
    assert (train["rows"], train["tokens"], train["bytes"]) == (2, 6 + 128, 5 + 128)
    assert (train["documents_cut"], train["tokens_dropped"], train["eos_tokens"]) == (1, 73, 1)
    assert prepared.manifest["splits"]["validation"]["rows"] == 0
    assert len(prepared.split("validation")) == 0


def test_without_eos_and_without_shuffling_the_stream_is_the_corpus(
    prepare_text: Prepare, corpus: Path
) -> None:
    prepared = prepare_text(
        paths=[str(corpus)],
        packing=PackingConfig(strategy="concatenate", append_eos=False),
        shuffle_documents=False,
        validation_fraction=0.0,
    )
    split = prepared.split("train")
    parts = [split.row(i) for i in range(len(split))]
    stream = np.concatenate([ids[segments > 0] for ids, segments in parts]) - 4
    expected = b"".join(path.read_bytes() for path in sorted(corpus.iterdir()))
    assert stream.astype(np.uint8).tobytes() == expected


@pytest.mark.parametrize("align", [False, True], ids=["anywhere", "aligned"])
def test_each_row_tells_where_in_its_document_it_begins(
    prepare_text: Prepare, corpus: Path, align: bool
) -> None:
    """Also without eos, where no token tells that a document has ended."""
    packing = PackingConfig("concatenate", align_documents=align, append_eos=False)
    prepared = prepare_text(paths=[str(corpus)], packing=packing, length_multiple=16)
    documents = {path.read_bytes() for path in corpus.iterdir()}
    found = set()
    for name in ("train", "validation"):
        split = pickle.loads(pickle.dumps(prepared.split(name)))
        text = b""
        for index in range(len(split)):
            ids, segments = split.row(index)
            assert split.offset(index) == len(text)
            for number in range(1, segments.max() + 1):
                text += (ids[segments == number] - 4).astype(np.uint8).tobytes()
                if text in documents:
                    found.add(text)
                    text = b""
        with pytest.raises(IndexError):
            split.offset(len(split))
    assert found == documents


@pytest.mark.parametrize(
    "tokenizer",
    [
        TokenizerConfig(),
        TokenizerConfig(kind="bpe", vocab_size=320),
        TokenizerConfig(kind="word", vocab_size=30),
    ],
    ids=lambda t: t.kind,
)
def test_processes_and_units_do_not_change_the_rows(
    prepare_text: Prepare, corpus: Path, tmp_path: Path, tokenizer: TokenizerConfig
) -> None:
    (corpus / "large.txt").write_text(make_text(99, 20_000))
    found = []
    for processes in (1, 3):
        prepared = prepare_text(
            paths=[str(corpus)],
            tokenizer=tokenizer,
            num_processes=processes,
            unit_bytes=16 * 1024,
            cache_root=str(tmp_path / f"with_{processes}"),
        )
        found.append((rows_of(prepared), rows_of(prepared, "validation"), prepared.manifest))
    assert found[0][:2] == found[1][:2]
    assert found[0][2]["splits"] == found[1][2]["splits"]
    assert found[0][2]["fingerprint"] == found[1][2]["fingerprint"]
    if tokenizer.kind == "bytes":
        whole = prepare_text(paths=[str(corpus)], tokenizer=tokenizer)
        assert rows_of(whole) == found[0][0]


def test_the_split_depends_on_the_text_alone(prepare_text: Prepare, corpus: Path) -> None:
    before = texts_of(prepare_text(paths=[str(corpus)], sequence_length=2**16), "validation")
    for path in sorted(corpus.iterdir())[:20]:
        path.rename(path.with_name(f"z{path.name}"))
    (corpus / "copy.txt").write_text(before[0])
    after = texts_of(prepare_text(paths=[str(corpus)], seed=1, sequence_length=2**16), "validation")
    assert Counter(after) == Counter([*before, before[0]])


def test_seed_changes_the_order_only(prepare_text: Prepare, corpus: Path) -> None:
    first, second = (
        texts_of(prepare_text(paths=[str(corpus)], seed=seed, sequence_length=2**16), "train")
        for seed in (0, 1)
    )
    assert first != second
    assert Counter(first) == Counter(second)


def test_one_text_file_gives_its_end_for_validation(prepare_text: Prepare, tmp_path: Path) -> None:
    text = make_text(1, 5000)
    (tmp_path / "book.txt").write_text(text)
    prepared = prepare_text(paths=[str(tmp_path / "book.txt")], sequence_length=2**16)
    (train,), (validation,) = (texts_of(prepared, name) for name in ("train", "validation"))
    assert train + validation == text
    assert len(validation.encode()) == pytest.approx(0.05 * len(text.encode()), rel=0.05)


@pytest.mark.parametrize("fraction", [0.01, 0.9], ids=["none_by_hash", "all_by_hash"])
def test_few_documents_fill_both_splits(
    prepare_text: Prepare, tmp_path: Path, fraction: float
) -> None:
    for name in ("bc" if fraction < 0.5 else "aefgh")[:3]:
        (tmp_path / f"{name}.txt").write_text(name * 5000)
    prepared = prepare_text(
        paths=[str(tmp_path / "*.txt")],
        validation_fraction=fraction,
        sequence_length=2**16,
        unit_bytes=2000,
    )
    train, validation = (texts_of(prepared, name) for name in ("train", "validation"))
    assert train
    assert validation
    names = ("bc" if fraction < 0.5 else "aefgh")[:3]
    assert sorted(train + validation) == [name * 5000 for name in names]
    stated = prepared.manifest["splits"]["validation"]
    counts = Counter("".join(validation))
    entropy = -sum(c / counts.total() * math.log2(c / counts.total()) for c in counts.values())
    assert stated["order0_bits_per_byte"] == pytest.approx(entropy)


def test_a_second_call_returns_at_once(prepare_text: Prepare, corpus: Path) -> None:
    first = prepare_text(paths=[str(corpus)])
    files = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    second = prepare_text(paths=[str(corpus)], num_processes=2)
    assert second.path == first.path
    assert {path: path.stat().st_mtime_ns for path in second.path.rglob("*")} == files
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]


def test_fingerprint_follows_what_shapes_the_rows(corpus: Path) -> None:
    def of(length: int = 128, seed: int = 0, packing: str = "best_fit", **data: object) -> str:
        values = {"source": "text", "paths": [str(corpus)], **data}
        config = DataConfig(**values)  # type: ignore[arg-type]
        return fingerprint(
            config, TokenizerConfig(), PackingConfig(strategy=packing), length, 1, seed
        )

    base = of()
    assert of(num_processes=7, cache_root="elsewhere") == base
    different = [
        of(length=256),
        of(seed=1),
        of(packing="concatenate"),
        of(validation_fraction=0.1),
        of(encoding_errors="ignore"),
    ]
    os.utime(corpus / "000.txt", ns=(1, 1))
    different.append(of())
    assert len({base, *different}) == len(different) + 1


def test_split_survives_pickling_and_refuses_bad_rows(prepare_text: Prepare, corpus: Path) -> None:
    split = prepare_text(paths=[str(corpus)]).split("train")
    before = split.row(5)[0].tolist()
    assert pickle.loads(pickle.dumps(split)).row(5)[0].tolist() == before
    for index in (-1, len(split)):
        with pytest.raises(IndexError):
            split.row(index)


def test_several_files_and_batches_are_found(prepare_text: Prepare, corpus: Path) -> None:
    (corpus / "large.txt").write_text(make_text(5, 120_000))
    packing = PackingConfig(strategy="concatenate", shard_megabytes=1)
    prepared = prepare_text(paths=[str(corpus)], packing=packing, shuffle_documents=False)
    files = prepared.manifest["splits"]["train"]["files"]
    assert len(files) > 1
    split = prepared.split("train")
    lazily = [split.row(i)[0].tolist() for i in (0, 4095, 4096, len(split) - 1)]

    import datasets

    loaded = datasets.load_from_disk(str(prepared.path / "train"))
    assert len(loaded) == len(split)
    assert [list(loaded[i]["input_ids"]) for i in (0, 4095, 4096, len(split) - 1)] == lazily


def test_python_library_is_the_interpreters_own(prepare_text: Prepare) -> None:
    packing = PackingConfig(strategy="concatenate")
    prepared = prepare_text(source="python_library", max_bytes=400_000, packing=packing)
    manifest = prepared.manifest
    assert manifest["python"] == ".".join(map(str, sys.version_info[:3]))
    assert 380_000 < manifest["bytes"] <= 410_000
    assert manifest["splits"]["validation"]["rows"] > 0
    library = Path(sysconfig.get_paths()["stdlib"])
    known = {path.read_bytes() for path in library.rglob("*.py")}
    texts = texts_of(prepared, "train")
    assert len(texts) > 3
    # All but the last, which is cut at the limit.
    assert sum(text.encode() in known for text in texts) >= len(texts) - 1


@pytest.mark.parametrize(
    "limit", [{"max_documents": 7}, {"max_bytes": 9000}], ids=["documents", "bytes"]
)
def test_limits_on_files(prepare_text: Prepare, corpus: Path, limit: dict[str, int]) -> None:
    manifest = prepare_text(paths=[str(corpus)], **limit).manifest
    if "max_documents" in limit:
        assert manifest["documents"] == 7
    else:
        assert 8900 < manifest["bytes"] < 9100


def test_a_limit_cuts_one_large_file(prepare_text: Prepare, tmp_path: Path) -> None:
    text = make_text(1, 5000)
    (tmp_path / "book.txt").write_text(text)
    prepared = prepare_text(
        paths=[str(tmp_path / "book.txt")], max_bytes=10_000, unit_bytes=3000, sequence_length=2**14
    )
    found = "".join(texts_of(prepared, "train") + texts_of(prepared, "validation"))
    assert text.startswith(found)
    assert 10_000 <= len(found.encode()) < 10_100
    assert prepared.manifest["splits"]["validation"]["documents"] == 1


def test_per_source_counts(prepare_text: Prepare, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 100)
    (tmp_path / "b.md").write_text("y" * 50)
    (tmp_path / "c.md").write_bytes(b"z\xff\xfez")
    (tmp_path / "d.md").write_text("")
    paths = [str(tmp_path / "*.txt"), str(tmp_path / "*.md")]
    manifest = prepare_text(paths=paths).manifest
    assert manifest["sources"][paths[0]]["documents"] == 1
    assert manifest["sources"][paths[1]] == {
        "documents": 2,
        "tokens": 51 + 9,
        "bytes": 50 + 8,
        "empty_documents": 1,
        "skipped_documents": 0,
        "invalid_utf8": 2,
    }
    assert (manifest["documents"], manifest["empty_documents"]) == (3, 1)


@pytest.mark.parametrize("unit_bytes", [10, 2**20], ids=["small_units", "one_unit"])
@pytest.mark.parametrize(
    ("policy", "texts", "skipped"),
    [
        ("replace", ["good", "b\ufffdd bad", "fine"], 0),
        ("ignore", ["good", "bd bad", "fine"], 0),
        ("skip", ["good", "fine"], 1),
    ],
)
def test_invalid_utf8_policies(
    prepare_text: Prepare,
    tmp_path: Path,
    policy: str,
    texts: list[str],
    skipped: int,
    unit_bytes: int,
) -> None:
    for name, raw in (("1", b"good"), ("2", b"b\xffd bad"), ("3", b"fine")):
        (tmp_path / f"{name}.txt").write_bytes(raw)
    prepared = prepare_text(
        paths=[str(tmp_path / "*.txt")],
        encoding_errors=policy,
        unit_bytes=unit_bytes,
        validation_fraction=0.0,
    )
    assert sorted(texts_of(prepared, "train")) == sorted(texts)
    assert prepared.manifest["invalid_utf8"] == 1
    assert prepared.manifest["skipped_documents"] == skipped


def test_open_refuses_what_is_damaged(prepare_text: Prepare, corpus: Path) -> None:
    prepared = prepare_text(paths=[str(corpus)])
    with open(prepared.path / "train" / "data-00000.arrow", "r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match=r"train/data-00000.arrow is missing or damaged"):
        open_prepared(prepared.path)
    prepared = prepare_text(paths=[str(corpus)], seed=1)
    (prepared.path / "validation" / "offsets.bin").unlink()
    with pytest.raises(DataError, match=r"validation/offsets.bin is missing or damaged"):
        open_prepared(prepared.path)
    manifest = json.loads((prepared.path / "manifest.json").read_text())
    (prepared.path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 0}))
    with pytest.raises(DataError, match="has format 0"):
        open_prepared(prepared.path)
    with pytest.raises(DataError, match="not a prepared corpus"):
        open_prepared(corpus)


def test_importing_is_cheap() -> None:
    import subprocess

    code = (
        "import sys, data_pipelines.prepare; "
        "heavy = {'torch', 'datasets', 'transformers', 'tokenizers', 'pyarrow', 'rich', 'lsp'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_content_digest_follows_the_rows_and_not_where_they_came_from(tmp_path):
    texts = [f"document {i} " * 40 for i in range(40)]
    digests, fingerprints = [], []
    for folder, changed in (("here", False), ("there", False), ("other", True)):
        (tmp_path / folder).mkdir()
        for i, text in enumerate(texts):
            (tmp_path / folder / f"{i}.txt").write_text(f"other {i} " * 50 if changed else text)
        data = DataConfig(
            source="text",
            paths=[str(tmp_path / folder / "*.txt")],
            cache_root=str(tmp_path / "cache"),
            shuffle_documents=False,
            num_processes=1,
        )
        manifest = prepare(
            data, TokenizerConfig(), PackingConfig(), sequence_length=64, progress=False
        ).manifest
        digests.append(content_digest(manifest))
        fingerprints.append(manifest["fingerprint"])
    assert digests[0] == digests[1] != digests[2]
    assert len(set(fingerprints)) == 3
