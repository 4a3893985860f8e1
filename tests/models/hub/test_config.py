"""Which architecture is meant, and what follows from the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lsp.core.errors import UserError
from lsp.models.hub.build import begin, build
from lsp.models.hub.config import HubConfig, resolve
from lsp.models.hub.example import example
from lsp.models.hub.table import NATIVE, ROWS
from lsp.models.hub.unused import freeze_unused
from lsp.run.compose import load_train_config
from tests.models.hub.tiny import LENGTH, SPECIAL_IDS, VOCABULARY, built, settled, tiny

torch.set_num_threads(1)

RUN: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "sequence_length": LENGTH,
    "special_ids": SPECIAL_IDS,
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with a tiny model, as `transformers` saves it."""
    model = built("bert", "masked").model
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_name_gives_the_config_and_on_request_the_weights(published: Path):
    fresh, same = (
        build(resolve(HubConfig(name=str(published), weights=weights), objective="masked", **RUN))
        for weights in (False, True)
    )
    assert (fresh.config.model_type, fresh.config.vocab_size) == ("bert", VOCABULARY)
    assert fresh.config.settled["hidden_size"] == tiny("bert")["hidden_size"]
    weights = built("bert", "masked").state_dict()
    for model, alike in ((fresh, False), (same, True)):
        begin(model, True)
        name = "model.bert.encoder.layer.0.intermediate.dense.weight"
        assert torch.equal(model.state_dict()[name], weights[name]) is alike
    assert same.state_dict().keys() == weights.keys()


def test_weights_that_leave_some_of_the_body_out_are_refused(published: Path):
    weights = load_file(published / "model.safetensors")
    left_out = "bert.encoder.layer.0.intermediate.dense.weight"
    kept = {name: weight for name, weight in weights.items() if name != left_out}
    save_file(kept, published / "model.safetensors", metadata={"format": "pt"})
    model = build(resolve(HubConfig(name=str(published), weights=True), objective="masked", **RUN))
    with pytest.raises(UserError, match=f"lacks 1 weights .*{left_out}.*weights=false"):
        begin(model, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, r"architecture\.model_type=bert, or leave it out"),
        ({"model_init_config": {"hidden_sizes": 8}}, "did you mean hidden_size"),
        ({"name": "no_folder/at all"}, "has no config.json that can be read"),
    ],
)
def test_names_that_cannot_be(published: Path, changes: dict[str, Any], message: str):
    config = HubConfig(**{"name": str(published), **changes})
    with pytest.raises(UserError, match=message) as caught:
        resolve(config, objective="masked", **RUN)
    assert "\n" not in str(caught.value)


def test_a_file_that_would_be_read_as_another_model_is_refused(tmp_path: Path):
    older = {"model_type": "bert", "position_embedding_type": "relative_key"}
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"position_embedding_type=relative_key is not known"):
        resolve(HubConfig(name=str(tmp_path)), objective="masked", **RUN)


def test_a_settled_config_stays_as_it_is(published: Path):
    done = resolve(HubConfig(name=str(published)), objective="masked", **RUN)
    (published / "config.json").unlink()
    assert resolve(done, objective="masked", **RUN) == done


def test_what_a_run_decides_about_positions_and_special_ids():
    values = settled("roberta", "masked").settled
    assert values["max_position_embeddings"] == LENGTH + SPECIAL_IDS["pad"] + 1
    assert (values["vocab_size"], values["bos_token_id"]) == (VOCABULARY, SPECIAL_IDS["bos"])
    assert settled("imagegpt", "causal").settled["vocab_size"] == VOCABULARY + 1
    assert settled("bert", "causal").settled["is_decoder"] is True
    assert settled("xlm", "masked").settled["causal"] is False
    assert settled("big_bird", "causal").settled["attention_type"] == "original_full"
    assert settled("m2m_100", "translation").settled["encoder_layerdrop"] == 0


@pytest.mark.parametrize(
    ("model_type", "objective", "key", "value"),
    [
        ("bert", "causal", "is_decoder", False),
        ("big_bird", "causal", "attention_type", "block_sparse"),
        ("m2m_100", "translation", "encoder_layerdrop", 0.1),
        ("mpt", "causal", "resid_pdrop", 0.1),
        ("yoso", "masked", "use_expectation", False),
    ],
)
def test_keys_that_would_change_nothing_or_too_much(
    model_type: str, objective: str, key: str, value: Any
):
    with pytest.raises(UserError, match=rf"model_init_config\.{key}={value} "):
        settled(model_type, objective, **{key: value})


def test_what_is_written_here_is_named():
    assert not NATIVE.keys() & ROWS.keys()
    for published_name, ours in NATIVE.items():
        with pytest.raises(UserError, match=f"architecture={ours}"):
            HubConfig(model_type=published_name)


def test_weights_that_no_loss_depends_on_are_frozen():
    model = build(settled("layoutlm", "masked"))
    state = torch.get_rng_state()
    frozen = freeze_unused(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert frozen == ("model.layoutlm.pooler.dense.weight", "model.layoutlm.pooler.dense.bias")
    assert all(p.grad is None for p in model.parameters())
    model(**example("masked", LENGTH, VOCABULARY))[0].backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters()} - set(frozen)


@pytest.mark.parametrize(
    ("typed", "objective"),
    [
        (["architecture.model_type=bert"], "next_sentence"),
        (["architecture.model_type=t5"], "span_corruption"),
        (["architecture.model_type=roberta", "objective.unit=span"], "masked"),
        (["architecture.model_type=bert", "objective=causal"], "causal"),
    ],
)
def test_the_objective_is_that_of_the_paper(typed: list[str], objective: str):
    assert load_train_config(["architecture=hub", *typed]).objective.name == objective
