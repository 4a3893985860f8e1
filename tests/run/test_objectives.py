"""From text on disk to batches of each objective, with tokenizers of our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import UserError
from lsp.core.objectives import OBJECTIVES
from lsp.run.compose import load_train_config
from lsp.run.config import RunConfig
from lsp.run.parts import batch_maker, prepare_data, vocabulary_of
from lsp.run.validate import validate
from tests.data_pipelines.corpora import write_corpus

LENGTH = 128


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    write_corpus(folder / "corpus", files=12, words=60)
    texts = [f"Text {n}. Second sentence {n}." for n in range(40)]
    lines = [json.dumps({"en": text, "de": text.upper()}) for text in texts]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def config_of(root: Path, objective: str, *overrides: str) -> RunConfig:
    source = [f"data.paths=[{root}/corpus/*.txt]", "data=text"]
    if objective == "translation":
        source = [f"data.paths=[{root}/pairs.jsonl]", "data=jsonl"]
        source += ["data.field=en", "data.target_field=de"]
    return load_train_config(
        [
            "experiment=debug",
            f"objective={objective}",
            f"sequence_length={LENGTH}",
            f"data.cache_root={root}/prepared",
            "data.num_processes=1",
            *source,
            *overrides,
        ]
    )


def text_of(config: RunConfig, ids: list[int]) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepare_data(config).tokenizer_path)
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batches_from_text(objective: str, root: Path) -> None:
    config = config_of(root, objective)
    prepared = prepare_data(config)
    maker = batch_maker(config, prepared, "train", vocabulary_of(prepared))
    rows = range(min(4, len(maker.rows)))
    batch, again = (maker.make(rows, [(2, row) for row in rows]) for _ in range(2))
    tensors = batch.tensors()
    assert all(torch.equal(again.tensors()[name], tensors[name]) for name in tensors)
    assert tensors["input_ids"].shape == (len(rows), LENGTH)
    assert (tensors["labels"] != IGNORE_INDEX).any(dim=1).all()
    size = prepared.manifest["tokenizer"]["vocab_size"]
    for name in ("input_ids", "decoder_input_ids", "labels"):
        assert tensors.get(name, torch.zeros(1)).max() < size


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe", "unigram", "word"])
def test_sentinels_are_tokens_of_every_own_tokenizer(tokenizer: str, root: Path) -> None:
    overrides = [] if tokenizer == "bytes" else ["tokenizer.vocab_size=420"]
    config = config_of(root, "span_corruption", f"tokenizer={tokenizer}", *overrides)
    prepared = prepare_data(config)
    maker = batch_maker(config, prepared, "train", vocabulary_of(prepared))
    batch = maker.make([0], [(2, 0)])
    source = text_of(config, batch.input_ids[0].tolist())
    target = text_of(config, batch.labels[0, batch.labels[0] >= 0].tolist())
    for number in range(2):
        assert f"<extra_id_{number}>" in source
        assert f"<extra_id_{number}>" in target
    assert "<cls>" not in source


def test_a_pair_reads_as_one(root: Path) -> None:
    config = config_of(root, "sentence_order", "objective.mask_probability=0.0001")
    prepared = prepare_data(config)
    maker = batch_maker(config, prepared, "train", vocabulary_of(prepared))
    batch = maker.make([0], [(2, 0)])
    text = text_of(config, batch.input_ids[0, batch.segment_ids[0] == 1].tolist())
    assert text.startswith("<cls>")
    assert text.endswith("<sep>")
    assert text.count("<sep>") == 2


def test_translation_writes_the_second_text(root: Path) -> None:
    config = config_of(root, "translation")
    prepared = prepare_data(config)
    batch = batch_maker(config, prepared, "train", vocabulary_of(prepared)).make([0], [(2, 0)])
    source = text_of(config, batch.input_ids[0, batch.segment_ids[0] == 1].tolist())
    decoder = batch.extra["decoder_segment_ids"][0] == 1
    target = text_of(config, batch.labels[0, decoder].tolist())
    assert target == source.removesuffix("<eos>").upper() + "<eos>"


REFUSED = {
    "not-read": (
        ["objective=causal", "objective.corruption_rate=0.2"],
        ["objective.corruption_rate=0.2 is not read by objective=causal", "by span_corruption"],
    ),
    "no-pairs": (["objective=translation"], ["data.field=en data.target_field=de"]),
    "cut-pairs": (
        [
            *("objective=translation", "packing=concatenate", "data=jsonl"),
            *("data.paths=[pairs.jsonl]", "data.target_field=de"),
        ],
        ["packing=concatenate cuts pairs", "packing=best_fit or one_per_row"],
    ),
    "decoder-too-long": (
        ["objective=span_corruption", "objective.decoder_length=2000"],
        ["objective.decoder_length=2000", "sequence_length=1024"],
    ),
    "decoder-over-processes": (
        ["objective=span_corruption", "parallelism=zero2", "parallelism.sequence=2"],
        ["parallelism.sequence=2", "objective=span_corruption", "one of causal"],
    ),
}


@pytest.mark.parametrize(("words", "says"), REFUSED.values(), ids=REFUSED)
def test_refused(words: list[str], says: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2" if "parallelism=zero2" in words else "1")
    with pytest.raises(UserError) as caught:
        validate(load_train_config(["architecture=hub", "architecture.model_type=t5", *words]))
    for text in says:
        assert text in str(caught.value)
