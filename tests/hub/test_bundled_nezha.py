"""The NEZHA that exports bring along computes what the trained one does, and the published did."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lsp.hub.bundled.configuration_nezha import NezhaConfig as BundledConfig
from lsp.hub.bundled.modeling_nezha import (
    NezhaForCausalLM,
    NezhaForMaskedLM,
    NezhaForPreTraining,
)
from lsp.hub.bundled.nezha_layers import BLOCK
from lsp.hub.comparison import Comparison
from lsp.hub.heads import open_head, save_head
from lsp.hub.importing import read_published
from lsp.hub.published import config_from_published, form_of
from lsp.models.heads.labels import Labels
from lsp.models.heads.registry import HEADS, build_head
from lsp.models.nezha import Nezha
from tests.hub.tiny import assert_comes_back, export_alone, shaken
from tests.models.test_nezha import nezha, random_ids
from tests.parity.test_nezha_parity import batch, model, under

torch.set_num_threads(1)

LENGTH = 64
KINDS: dict[str, dict[str, Any]] = {
    "masked": {"hidden_act": "relu"},
    "pairs": {"sentence_pairs": True, "tie_word_embeddings": False},
    "causal": {"is_decoder": True},
}
CLASSES = {"masked": NezhaForMaskedLM, "pairs": NezhaForPreTraining, "causal": NezhaForCausalLM}


def both(kind: str, **values: Any) -> tuple[Nezha, Any]:
    ours = shaken(nezha(**KINDS[kind] | values)).double()
    form = form_of(ours.config)
    theirs = CLASSES[kind](BundledConfig.from_dict(form.published_config(ours.config, form)))
    theirs.load_state_dict(form.to_published(ours.state_dict(), ours.config))
    return ours, theirs.double().eval()


NAMES: dict[type, str] = {
    NezhaForMaskedLM: "logits",
    NezhaForPreTraining: "prediction_logits",
    NezhaForCausalLM: "logits",
}


def scores(theirs: Any, *given: Any, **inputs: Any) -> torch.Tensor:
    found: torch.Tensor = theirs(*given, **inputs)[NAMES[type(theirs)]]
    return found


def test_it_is_the_published_model():
    ours, rows, published = model(), batch(), under("out/")
    form = form_of(ours.config)
    theirs = NezhaForPreTraining(
        BundledConfig.from_dict(form.published_config(ours.config, form))
    ).eval()
    theirs.load_state_dict(under("state/"))
    out = theirs(
        rows["input_ids"], labels=rows["labels"], next_sentence_label=rows["pair_labels"][:, 0]
    )
    for name, tensor in published.items():
        torch.testing.assert_close(out[name], tensor, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_the_trained_model(kind: str):
    ours, theirs = both(kind)
    ids, types = random_ids(2), (torch.arange(LENGTH) > 20).long().expand(2, -1)
    logits = ours.logits(ids, token_type_ids=types)
    found = scores(theirs, ids, token_type_ids=types)
    torch.testing.assert_close(found, logits, rtol=1e-10, atol=1e-10)
    logits.square().sum().backward()
    found.square().sum().backward()
    gradients = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    for name, gradient in gradients.items():
        of_theirs = theirs.get_parameter(name).grad
        if name == "nezha.embeddings.word_embeddings.weight":
            gradient = gradient.clone()
            of_theirs = of_theirs.clone()
            gradient[0] = of_theirs[0] = 0  # padding: not learnt by nn.Embedding
        torch.testing.assert_close(of_theirs, gradient, rtol=1e-8, atol=1e-8, msg=name)


def test_rows_longer_than_a_block():
    ours, theirs = both("masked", max_position_embeddings=2 * BLOCK)
    ids = random_ids(1, BLOCK + 8)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours.logits(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str):
    _, theirs = both(kind)
    ids = random_ids(2, 40)
    padded, mask = torch.zeros(2, 48, dtype=torch.long), torch.zeros(2, 48, dtype=torch.long)
    padded[0, 8:], padded[1, :40] = ids[0], ids[1]
    mask[0, 8:] = mask[1, :40] = 1
    with torch.no_grad():
        alone, found = scores(theirs, ids), scores(theirs, padded, attention_mask=mask)
    torch.testing.assert_close(found[1, :40], alone[1])
    torch.testing.assert_close(found[0, 8:], alone[0])


def test_generation_with_a_cache_is_generation_without():
    _, theirs = both("causal")
    prompt, mask = random_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    prompt[0, :5], mask[0, :5] = 0, 0
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    options |= {"attention_mask": mask, "return_dict_in_generate": True, "output_logits": True}
    cached, plain = (theirs.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    for one, other in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other)


def test_labels_give_the_loss_and_what_cannot_be_is_refused():
    ours, theirs = both("causal")
    ids = random_ids()
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    loss, count = ours(ids, labels)
    found = theirs(ids, labels=ids, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(found.loss, loss / count)
    assert len(found.hidden_states) == 3
    assert [weights.shape for weights in found.attentions] == [(1, 4, LENGTH, LENGTH)] * 2
    with pytest.raises(ValueError, match="513 tokens are more than the 512 positions"):
        theirs(random_ids(1, 513))
    with pytest.raises(ValueError, match="a model that sees both sides cannot continue"):
        NezhaForCausalLM(BundledConfig())


EXPORTED = ["pairs", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("masked", "causal"))]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Given a kind: the folder, the model, and what the export's own comparison found."""

    @cache
    def export(kind: str) -> tuple[Path, Nezha, Comparison]:
        out = tmp_path_factory.mktemp("bundled") / kind
        model = shaken(nezha(**KINDS[kind]))
        return out, model, export_alone(model, LENGTH, out)

    return export


@pytest.mark.parametrize("kind", EXPORTED)
def test_a_fresh_process_finds_the_trained_model(exported, kind: str):
    out, model, found = exported(kind)
    assert found.cases[1].difference < 1e-10
    assert found.generated == (4 if kind == "causal" else 0)
    code = {"configuration_nezha.py", "modeling_nezha.py", "nezha_layers.py"}
    assert code == {path.name for path in out.glob("*.py")}
    back = assert_comes_back(model, out)
    objective = {"masked": "masked", "pairs": "next_sentence", "causal": "causal"}[kind]
    assert (back.architecture, back.objective, back.ignored) == ("nezha", objective, [])


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_weights_and_old_keys_are_read(kind: str, tmp_path):
    model = shaken(nezha(**KINDS[kind]))
    form = form_of(model.config)
    config = form.published_config(model.config, form)
    assert config_from_published(config) == (model.config, [])
    old = {"use_relative_position": True, "use_cache": True}
    (tmp_path / "config.json").write_text(json.dumps(config | old))
    state = form.to_published(model.state_dict(), model.config)
    table = "nezha.encoder.layer.0.attention.self.relative_positions_encoding.positions_encoding"
    torch.save(state | {table: torch.zeros(4, 4, 8)}, tmp_path / "pytorch_model.bin")
    back = read_published(tmp_path)
    assert (back.config, back.ignored) == (model.config, [])
    assert all(torch.equal(back.weights[n], w) for n, w in model.state_dict().items())


def test_a_model_without_a_head_gets_one(tmp_path):
    model = shaken(nezha())
    state = {n: x for n, x in model.state_dict().items() if n.startswith("nezha.")}
    config = {"model_type": "nezha", "architectures": ["NezhaModel"]}
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict() | config))
    torch.save(state | {"nezha.pooler.dense.bias": torch.ones(32)}, tmp_path / "pytorch_model.bin")
    back = read_published(tmp_path)
    assert back.objective == "masked"
    assert {name.partition(".")[0] for name in back.fresh} == {"cls"}
    Nezha(back.config).load_state_dict(back.weights)


TASKS = [task for architecture, task in HEADS if architecture == "nezha" and "lm" not in task]


@pytest.mark.parametrize("task", TASKS)
def test_a_head_is_the_published_one(exported, task: str, tmp_path):
    """On what pretraining left: the pooler comes along, and `save_head` compares both."""
    ours = open_head(exported("pairs")[0], task)
    fresh = {name.partition(".")[0] for name in ours.fresh}
    assert fresh == {"qa_outputs" if task == "question_answering" else "classifier"}
    out = save_head(ours, tmp_path / "out")
    auto = getattr(transformers, HEADS["nezha", task].auto_class)
    theirs = auto.from_pretrained(out, trust_remote_code=True).eval()
    ids = random_ids(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    labels: dict[str, torch.Tensor] = {"labels": torch.tensor([0, 1])}
    if task == "question_answering":
        labels = {"start_positions": torch.tensor([3, 30]), "end_positions": torch.tensor([5, 30])}
    if task == "token_classification":
        labels = {"labels": (ids % 2).masked_fill(mask == 0, -100)}
    if task == "multiple_choice":
        ids, mask = (x[:, None].expand(-1, 2, -1).clone() for x in (ids, mask))
        ids[:, 1, 3] = 7
    given = {"input_ids": ids, "attention_mask": mask} | labels
    shown = {"output_attentions": True, "output_hidden_states": True}
    expected, found = theirs(**given, **shown), ours(**given, **shown)
    torch.testing.assert_close(found.loss, expected.loss)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one[0], other[0])
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(one[0], other[0])
    assert open_head(out, task).fresh == ()


def test_a_head_begins_without_what_tells_pairs(exported):
    ours = open_head(exported("pairs")[0], "masked_lm")
    assert ours.fresh == ()
    assert not ours.config.sentence_pairs
    ids = random_ids()
    torch.testing.assert_close(ours(ids).logits, exported("pairs")[1].logits(ids))
    alone = build_head(nezha().config, "sequence_classification", labels=Labels(3))
    assert alone(ids).logits.shape == (1, 3)
