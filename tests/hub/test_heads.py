"""Heads in published folders, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from lsp.core.errors import UserError
from lsp.hub import heads
from lsp.hub.comparison import ExportMismatchError
from lsp.hub.heads import open_head, save_head
from lsp.hub.importing import read_published
from lsp.models import registry
from lsp.models.heads.labels import Labels
from lsp.models.heads.registry import HEADS, build_head
from lsp.models.transformer_xl_config import TransformerXLConfig
from tests.models.heads.published import (
    CONFIGS,
    IDS,
    LABELS,
    PUBLISHED,
    SHAPES,
    inputs_for,
    ours_of,
    published,
)


def same_answers(ours: torch.nn.Module, theirs: torch.nn.Module, architecture: str, task: str):
    inputs = inputs_for(architecture, task)
    with torch.no_grad():
        out, expected = ours.eval()(**inputs), theirs.eval()(**inputs)
    for name in ("logits", "start_logits"):
        if getattr(out, name) is not None:
            torch.testing.assert_close(
                getattr(out, name), getattr(expected, name), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(("architecture", "task"), PUBLISHED, ids=IDS)
def test_a_published_head_is_opened_and_saved(architecture: str, task: str, tmp_path: Path):
    theirs = published(architecture, task)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = open_head(tmp_path / "theirs", task)
    assert ours.fresh == ()
    assert not ours.training
    same_answers(ours, theirs, architecture, task)

    save_head(ours, tmp_path / "ours")
    auto = getattr(transformers, HEADS[architecture, task].auto_class)
    back = auto.from_pretrained(tmp_path / "ours")
    assert type(back) is type(theirs)
    for name, weight in theirs.state_dict().items():
        if name != "lm_head.bias":  # in published Longformers a second, unread name
            assert torch.equal(back.state_dict()[name], weight), name
    assert back.config.id2label == theirs.config.id2label


CLASSIFIERS = [name for name, task in PUBLISHED if task == "sequence_classification"]


@pytest.mark.parametrize("body", ["language model", "model without a head"])
@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_fresh_head_on_a_pretrained_model(architecture: str, body: str, tmp_path: Path):
    theirs = published(architecture, "masked_lm")
    (theirs if body == "language model" else theirs.base_model).save_pretrained(tmp_path / "body")
    names = {0: "short", 1: "long", 2: "other"}
    torch.manual_seed(7)
    ours = open_head(tmp_path / "body", "sequence_classification", labels={"id2label": names})
    parts = ("dense.bias", "dense.weight", "out_proj.bias", "out_proj.weight")
    assert ours.fresh == tuple(f"classifier.{part}" for part in parts)
    spread = SHAPES[architecture]["initializer_range"]
    assert 0.7 * spread < float(ours.classifier.dense.weight.detach().std()) < 1.3 * spread
    assert not ours.classifier.out_proj.bias.any()
    save_head(ours, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "short", "1": "long", "2": "other"}
    assert config["architectures"] == [type(theirs).__name__.replace("MaskedLM", SEQUENCES)]
    assert (tmp_path / "out").is_dir()


SEQUENCES = "SequenceClassification"


def test_what_was_learned_is_saved_with_its_problem_type(tmp_path: Path):
    ours = build_head(CONFIGS["longformer"].from_dict(SHAPES["longformer"]), "masked_lm")
    save_head(ours, tmp_path / "pretrained")
    ours = open_head(tmp_path / "pretrained", "sequence_classification", labels={"num_labels": 1})
    ours.train()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    inputs = inputs_for("longformer", "sequence_classification")
    for _ in range(2):
        optimizer.zero_grad()
        ours(**inputs, labels=torch.tensor([0.5, 2.0])).loss.backward()
        optimizer.step()
    save_head(ours, tmp_path / "tuned")
    assert ours.training
    again = open_head(tmp_path / "tuned", "sequence_classification")
    assert again.labels == ours.labels
    assert again.labels.problem_type == "regression"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
    same_answers(again, theirs, "longformer", "sequence_classification")


def test_other_labels_need_a_fresh_head(tmp_path: Path):
    published("longformer", "token_classification").save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"classifier.bias is \(3,\).*fresh_head=True"):
        open_head(tmp_path / "theirs", "token_classification", labels={"num_labels": 5})
    ours = open_head(
        tmp_path / "theirs", "token_classification", labels={"num_labels": 5}, fresh_head=True
    )
    assert ours.fresh == ("classifier.bias", "classifier.weight")
    assert ours.labels.num_labels == 5 != LABELS


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("token_classification", {}, "task of a reformer=token_classification is not known"),
        ("causal_lm", {}, "is_decoder=false does not fit causal_lm: use is_decoder=true"),
        ("sequence_classification", {"dropout": 0.1}, "dropout is not an option of reformer"),
        ("sequence_classification", {"hidden_dropout_prob": 2}, "hidden_dropout_prob=2 has to be"),
    ],
    ids=["no such head", "direction", "unknown option", "bad option"],
)
def test_what_cannot_be_opened(task: str, changes: dict, message: str, tmp_path: Path):
    published("reformer", "masked_lm").save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match=message):
        open_head(tmp_path / "theirs", task, changes=changes)


def test_nothing_is_saved_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours = ours_of(published("longformer", "question_answering"), "question_answering")

    def other(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        weights = to_published(model)
        return weights | {"qa_outputs.bias": weights["qa_outputs.bias"] + 1}

    to_published = heads.to_published
    monkeypatch.setattr(heads, "to_published", other)
    with pytest.raises(ExportMismatchError, match="start_logits differ by 1"):
        save_head(ours, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_saved_over_something(tmp_path: Path):
    ours = ours_of(published("reformer", "question_answering"), "question_answering")
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UserError, match="exists: name another folder"):
        save_head(ours, tmp_path)


def test_a_model_in_half_precision_is_saved(tmp_path: Path):
    ours = ours_of(published("longformer", "token_classification"), "token_classification")
    save_head(ours.to(torch.bfloat16), tmp_path / "out")
    assert ours.classifier.weight.dtype == torch.bfloat16
    back = open_head(tmp_path / "out", "token_classification")
    assert torch.equal(back.classifier.weight, ours.classifier.weight.float())


@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_transformer_xl_goes_out_with_its_code(task: str, tmp_path: Path):
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "cutoffs": [12, 24], "d_model": 16, "d_embed": 16, "n_head": 2}
    shape |= {"d_head": 6, "d_inner": 20, "div_val": 2, "n_layer": 2, "mem_len": 6}
    ours = build_head(TransformerXLConfig.from_dict(shape), task, labels=Labels(LABELS))
    save_head(ours, tmp_path / "out")
    auto = getattr(transformers, HEADS["transformer_xl", task].auto_class)
    theirs = auto.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    again = open_head(tmp_path / "out", task)
    ids = torch.randint(0, 40, (1, 9))
    with torch.no_grad():
        out, expected, back = ours.eval()(ids), theirs(ids), again(ids)
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(back.logits, out.logits)
    for got, want in zip(out.mems, expected.mems, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_reversible_longformer_is_only_read_here(tmp_path: Path):
    config = CONFIGS["longformer"].from_dict(SHAPES["longformer"] | {"residual": "reversible"})
    model = build_head(config, "token_classification")
    inputs = inputs_for("longformer", "token_classification")
    model(**inputs, labels=inputs["input_ids"] % 2).loss.backward()
    with pytest.raises(UserError, match="only lsp can read it"):
        save_head(model, tmp_path / "out")


@pytest.mark.parametrize("head", ["SequenceClassification", "no head"])
@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_language_model_is_begun_on_another_head(architecture: str, head: str, tmp_path: Path):
    theirs = published(architecture, "sequence_classification")
    (theirs if head != "no head" else theirs.base_model).save_pretrained(tmp_path)
    read = read_published(tmp_path)
    assert read.fresh
    assert all(name.startswith("lm_head.") for name in read.fresh)
    assert "lm_head.decoder.weight" not in read.fresh or architecture == "reformer"  # tied
    ours = registry.get(architecture).build(read.config)
    ours.load_state_dict(read.weights)
    base = f"{theirs.base_model_prefix}."
    for name, weight in theirs.state_dict().items():
        assert not name.startswith(base) or torch.equal(read.weights[name], weight), name
    again = read_published(tmp_path)
    assert all(torch.equal(again.weights[name], weight) for name, weight in read.weights.items())
