"""Architectures of `transformers` out into published folders, and in from them."""

import json

import pytest
import torch
import transformers

from lsp.core.errors import UserError
from lsp.hub.hub_forms import form_of
from lsp.hub.hub_importing import read_hub
from lsp.hub.published import read_published_config
from lsp.models.hub.build import build
from tests.hub.hub_models import LENGTH, assert_opens_alike, stored, tiny
from tests.hub.tiny import export_alone, write_byte_tokenizer

CASES = [("llama", "causal"), ("bert", "next_sentence"), ("bert", "causal"), ("gpt2", "causal")]


@pytest.mark.parametrize(("model_type", "objective"), CASES, ids=["-".join(c) for c in CASES])
def test_opens_in_transformers(tmp_path, model_type, objective):
    assert_opens_alike(tiny(model_type, objective), tmp_path)


def test_export_is_compared_in_a_fresh_process(tmp_path):
    model = tiny("llama", "causal", vocab_size=300)
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer")
    folder = tmp_path / "out"
    comparison = export_alone(
        model, LENGTH, folder, build=build, tokenizer_path=tokenizer, dtype="bf16"
    )
    assert [case.length for case in comparison.cases] == [LENGTH, LENGTH]
    assert (comparison.generated, comparison.texts) == (4, 5)
    assert all(weight.dtype == torch.bfloat16 for weight in stored(folder).values())
    assert type(transformers.AutoModelForCausalLM.from_pretrained(folder)).__name__ == (
        "LlamaForCausalLM"
    )
    card = (folder / "README.md").read_text()
    assert "A Llama language model" in card
    assert "AutoModelForCausalLM.from_pretrained" in card


def test_tied_weights_are_stored_once(tmp_path):
    assert_opens_alike(tiny("gpt2", "causal"), tmp_path)
    assert "lm_head.weight" not in stored(tmp_path)


def test_switch_to_the_future_is_in_the_config(tmp_path):
    assert form_of(tiny("bert", "causal").config).auto_class == "AutoModelForCausalLM"
    assert_opens_alike(tiny("bert", "causal"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["is_decoder"] is True


def publish(folder, kind, **changes):
    """As somebody else would have written it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=60, num_hidden_layers=2, max_position_embeddings=LENGTH, **sizes | changes
    )
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder, max_shard_size="4KB")
    return model


def read(folder, objective=None):
    return read_hub(folder, read_published_config(folder), objective, LENGTH)


def test_import_has_the_weights_and_the_objective_of_the_head(tmp_path):
    theirs = publish(tmp_path, "BertForPreTraining")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    published = read(tmp_path)
    assert published.objective == "next_sentence"
    assert (published.fresh, published.left_over) == ((), ())
    for name, weight in theirs.state_dict().items():
        assert torch.equal(published.weights[f"model.{name}"], weight)
    model = build(published.config)
    model.load_state_dict(published.weights)
    ids = torch.arange(2, 32)[None]
    with torch.no_grad():
        expected = theirs(ids).prediction_logits
        assert torch.allclose(model.eval().logits(ids), expected, atol=1e-5)


def test_import_for_another_objective_tells_what_is_fresh_and_what_is_left(tmp_path):
    publish(tmp_path, "BertForSequenceClassification")
    published = read(tmp_path, "masked")
    assert "cls.predictions.transform.dense.weight" in published.fresh
    assert not any(name.startswith("bert.") for name in published.fresh)
    assert "classifier.weight" in published.left_over
    again = read(tmp_path, "masked")  # what is fresh is the same each time
    assert all(torch.equal(again.weights[n], w) for n, w in published.weights.items())


def test_import_of_an_older_pickle(tmp_path):
    theirs = publish(tmp_path, "BertForMaskedLM")
    for file in tmp_path.glob("model*"):
        file.unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    published = read(tmp_path)
    assert published.objective == "masked"
    assert all(
        torch.equal(published.weights[f"model.{n}"], w) for n, w in theirs.named_parameters()
    )


def test_what_was_exported_comes_back(tmp_path):
    model = tiny("llama", "causal")
    assert_opens_alike(model, tmp_path)
    published = read(tmp_path)
    assert published.weights.keys() == model.state_dict().keys()
    assert all(torch.equal(published.weights[n], w) for n, w in model.state_dict().items())
    assert published.config.settled == model.config.settled


@pytest.mark.parametrize("what", ["nothing", "body", "shape", "damaged", "kind", "objective"])
def test_what_cannot_be_imported_is_told_in_a_line(tmp_path, what):
    publish(tmp_path, "BertForMaskedLM")
    objective, says = None, str(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if what == "nothing":
        for file in tmp_path.glob("model*"):
            file.unlink()
    elif what == "body":
        config["num_hidden_layers"] = 3
        says = "lacks bert.encoder.layer.2"
    elif what == "shape":
        config["intermediate_size"] = 20
    elif what == "damaged":
        for file in tmp_path.glob("model-*"):
            file.write_bytes(b"nothing")
    elif what == "kind":
        config["model_type"] = "berd"
        says = "did you mean 'bert'?"
    elif what == "objective":
        objective, says = "translation", "objective=translation is not possible"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as told:
        read(tmp_path, objective)
    assert says in str(told.value)
    assert len(str(told.value).splitlines()) <= 2
