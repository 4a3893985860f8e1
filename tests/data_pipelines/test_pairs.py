"""Documents that are pairs of texts, from two fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.errors import DataError
from data_pipelines.prepare import PreparedData
from tests.data_pipelines.conftest import Prepare

PAIRS = [(f"text {n}", f"Wort {n}, é") for n in range(40)]
EOS = 1


def write_jsonl(path: Path, pairs: list[tuple[str | None, str | None]]) -> Path:
    lines = [json.dumps({"en": en, "de": de}) for en, de in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_parquet(path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"de": [de for _, de in PAIRS], "en": [en for en, _ in PAIRS]}
    pq.write_table(pa.table(columns), path)
    return path


def pairs_of(prepared: PreparedData) -> set[tuple[str, str]]:
    found = set()
    for name in ("train", "validation"):
        split = prepared.split(name)
        for index in range(len(split)):
            ids, segments = split.row(index)
            for number in range(1, segments.max() + 1):
                document = ids[segments == number].tolist()
                cut = document.index(EOS)
                assert document.count(EOS) == 2
                assert document[-1] == EOS
                texts = (document[:cut], document[cut + 1 : -1])
                found.add(tuple(bytes(i - 4 for i in text).decode() for text in texts))
    return found


@pytest.mark.parametrize("source", ["jsonl", "parquet", "hub_dataset"])
def test_each_document_is_both_texts(source: str, prepare_text: Prepare, tmp_path: Path) -> None:
    if source == "parquet":
        path, more = write_parquet(tmp_path / "pairs.parquet"), {}
    else:
        path, more = write_jsonl(tmp_path / "pairs.jsonl", list(PAIRS)), {}
    if source == "hub_dataset":
        more = {"name": "json"}
    prepared = prepare_text(source=source, paths=[str(path)], field="en", target_field="de", **more)
    assert pairs_of(prepared) == set(PAIRS)
    assert prepared.manifest["documents"] == len(PAIRS)
    size = sum(len(en.encode()) + len(de.encode()) for en, de in PAIRS)
    assert prepared.manifest["bytes"] == size
    assert prepared.manifest["tokens"] == size + 2 * len(PAIRS)


def test_a_pair_that_lacks_a_text_is_empty(prepare_text: Prepare, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [*PAIRS, ("alone", ""), (None, "allein")])
    prepared = prepare_text(source="jsonl", paths=[str(path)], field="en", target_field="de")
    assert pairs_of(prepared) == set(PAIRS)
    assert prepared.manifest["empty_documents"] == 2


@pytest.mark.parametrize("strategy", ["best_fit", "one_per_row"])
def test_no_rest_of_a_pair_is_read_as_another(
    strategy: str, prepare_text: Prepare, tmp_path: Path
) -> None:
    pairs = [(str(n) * 20, str(n) * 40) for n in range(8)]
    path = write_jsonl(tmp_path / "p.jsonl", pairs)
    prepared = prepare_text(
        sequence_length=32,
        packing=PackingConfig(strategy=strategy),
        source="jsonl",
        paths=[str(path)],
        field="en",
        target_field="de",
    )
    splits = [prepared.split(name) for name in ("train", "validation")]
    rows = [split.row(index)[0].tolist() for split in splits for index in range(len(split))]
    assert len(rows) == 8
    assert all(row[:21] == [row[21]] * 20 + [EOS] for row in rows)
    assert sum(s["tokens_dropped"] for s in prepared.manifest["splits"].values()) == 8 * (62 - 32)


def test_what_is_refused(prepare_text: Prepare, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", list(PAIRS))
    values = {"source": "jsonl", "paths": [str(path)], "field": "en"}
    with pytest.raises(DataError, match=r"has no field 'fr' \(data\.target_field\): it has en, de"):
        prepare_text(**values, target_field="fr")
    with pytest.raises(DataError, match=r"needs packing\.append_eos=true"):
        prepare_text(**values, target_field="de", packing=PackingConfig(append_eos=False))
    words = TokenizerConfig(kind="transformer_xl", vocab_size=50, add_eos=True)
    with pytest.raises(DataError, match=r"leave out tokenizer\.add_eos"):
        prepare_text(**values, target_field="de", tokenizer=words)
    with pytest.raises(DataError, match=r"data\.target_field=en must name another field"):
        DataConfig(**values, target_field="en")
    with pytest.raises(DataError, match=r"is not read by data\.source=python_library"):
        DataConfig(target_field="de")
    write_parquet(tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"has no column 'fr' \(data\.target_field\)"):
        prepare_text(source="parquet", paths=[str(tmp_path)], field="en", target_field="fr")
