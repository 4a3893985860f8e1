"""The Longformer that exports bring along computes what the trained one does, and is told how."""

import ast
import itertools
import sys
from typing import Any

import pytest
import torch
import transformers

from lsp.hub.bundled.configuration_lsp_longformer import LspLongformerConfig
from lsp.hub.bundled.lsp_longformer_layers import BLOCK
from lsp.hub.bundled.modeling_lsp_longformer import (
    LspLongformerForCausalLM,
    LspLongformerForMaskedLM,
)
from lsp.hub.form import BUNDLED
from lsp.hub.published import config_from_published, form_of
from lsp.models.longformer import Longformer
from tests.hub.tiny import assert_comes_back, export_alone, shaken
from tests.training.tiny import LENGTH, longformer

torch.set_num_threads(1)

KINDS: dict[str, dict[str, Any]] = {
    "causal": {"is_decoder": True, "attention_window": [16, 6]},
    "gaps": {"attention_dilation": [1, [2, 4]]},
    "causal with gaps": {"is_decoder": True, "attention_dilation": [2, 4], "hidden_act": "relu"},
    "reversible": {"residual": "reversible", "tie_word_embeddings": False},
    "reversible with global tokens": {"residual": "reversible", "global_tokens": 2},
    "reversible, causal, with gaps": {
        "residual": "reversible",
        "is_decoder": True,
        "attention_dilation": [[1, 2], 2],
    },
}


def both(kind: str, **values: Any) -> tuple[Longformer, Any]:
    ours = shaken(longformer(**KINDS[kind] | values)).double().eval()
    form = form_of(ours.config)
    config = LspLongformerConfig.from_dict(form.published_config(ours.config, form))
    causal = ours.config.is_decoder
    theirs = (LspLongformerForCausalLM if causal else LspLongformerForMaskedLM)(config)
    theirs.load_state_dict(form.to_published(ours.state_dict(), ours.config))
    return ours, theirs.double().eval()


def token_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(4, 64, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_the_trained_model(kind: str):
    ours, theirs = both(kind)
    ids = token_ids(2, LENGTH)
    logits = ours.logits(ids)
    torch.testing.assert_close(theirs(ids).logits, logits, rtol=1e-10, atol=1e-10)
    logits.square().sum().backward()
    theirs(ids).logits.square().sum().backward()
    form = form_of(ours.config)
    gradients = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    for name, gradient in form.to_published(gradients, ours.config).items():
        found = theirs.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("kind", ["causal", "reversible with global tokens"])
def test_rows_longer_than_a_block(kind: str):
    ours, theirs = both(kind, max_position_embeddings=2 * BLOCK + 10)
    ids = token_ids(1, BLOCK + 8)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours.logits(ids))


def test_global_tokens_anywhere_and_as_many_as_a_row_has():
    ours, theirs = both("reversible with global tokens")
    ids = token_ids(3, LENGTH)
    mask = torch.zeros_like(ids)
    mask[0, [3, 40]] = mask[1, 63] = 1
    with torch.no_grad():
        expected = ours.logits(ids, global_attention_mask=mask)
        found = theirs(ids, global_attention_mask=mask).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str):
    _, theirs = both(kind)
    ids = token_ids(2, 40)
    padded, mask = torch.full((2, 48), 1), torch.zeros(2, 48, dtype=torch.long)
    padded[0, 8:], padded[1, :40] = ids[0], ids[1]
    mask[0, 8:] = mask[1, :40] = 1
    with torch.no_grad():
        alone, found = theirs(ids).logits, theirs(padded, attention_mask=mask).logits
    torch.testing.assert_close(found[1, :40], alone[1])
    torch.testing.assert_close(found[0, 8:], alone[0])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "causal" in kind])
def test_generation_with_a_cache_is_generation_without(kind: str):
    _, theirs = both(kind)
    prompt, mask = token_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    prompt[0, :5], mask[0, :5] = 1, 0
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    options |= {"attention_mask": mask, "return_dict_in_generate": True, "output_logits": True}
    cached, plain = (theirs.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    assert len(cached.logits) == 20
    for one, other in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other)


def test_labels_give_the_loss():
    ours, theirs = both("causal")
    ids = token_ids(1, LENGTH)
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    loss, count = ours(ids, labels)
    found = theirs(ids, labels=ids, output_hidden_states=True)
    torch.testing.assert_close(found.loss, loss / count)
    assert not theirs.accepts_loss_kwargs  # a Trainer that accumulates gradients asks
    assert len(found.hidden_states) == 3
    masked, both_ways = both("reversible")
    loss, count = masked(ids, labels)
    torch.testing.assert_close(both_ways(ids, labels=labels).loss, loss / count)


def test_what_cannot_be_is_refused():
    _, theirs = both("causal")
    with pytest.raises(ValueError, match="65 tokens are more than the 64 positions"):
        theirs(token_ids(1, 65))
    with pytest.raises(ValueError, match="lets a causal model see later tokens"):
        theirs(token_ids(1, 8), global_attention_mask=torch.ones(1, 8))


def test_the_code_needs_transformers_and_torch_alone():
    for file in BUNDLED.glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        plain = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        known = [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 0]
        used = {name.partition(".")[0] for name in itertools.chain(plain, known)}
        assert used - sys.stdlib_module_names <= {"torch", "transformers"}, file


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("bundled") / "out"
    model = shaken(longformer(**KINDS["reversible, causal, with gaps"]))
    found = export_alone(model, LENGTH, out, max_shard_size=20_000)
    return out, model, found


def test_a_fresh_process_finds_the_trained_model(exported):
    out, _, found = exported
    assert (found.cases[1].length, found.generated) == (LENGTH, 4)
    assert found.cases[1].difference < 1e-12
    names = ("configuration_lsp_longformer", "lsp_longformer_layers", "modeling_lsp_longformer")
    code = {f"{name}.py" for name in names}
    assert code == {path.name for path in out.glob("*.py")}
    card = (out / "README.md").read_text()
    assert "trust_remote_code=True)" in card
    assert "`modeling_lsp_longformer.py` in this folder are it" in card


def test_without_the_code_it_does_not_open_as_another_model(exported, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModelForCausalLM.from_pretrained(exported[0])


def test_it_comes_back_bit_equal(exported):
    out, model, _ = exported
    back = assert_comes_back(model, out)
    assert (back.architecture, back.objective, back.ignored) == ("longformer", "causal", [])


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_comes_back(kind: str):
    config = longformer(**KINDS[kind]).config
    form = form_of(config)
    back, ignored = config_from_published(form.published_config(config, form))
    assert (back.windows, back.dilations) == (config.windows, config.dilations)
    assert back == config
    assert ignored == []
