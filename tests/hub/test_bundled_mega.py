"""The Mega that exports bring along computes what the trained one does, and comes back."""

from typing import Any

import pytest
import torch
import transformers

from lsp.core.errors import UserError
from lsp.hub.bundled.configuration_mega import MegaConfig as BundledConfig
from lsp.hub.bundled.mega_layers import BLOCK
from lsp.hub.bundled.modeling_mega import MegaForCausalLM, MegaForMaskedLM
from lsp.hub.importing import read_published
from lsp.hub.published import config_from_published, form_of
from lsp.models.mega import Mega
from lsp.models.mega_weights import from_published
from tests.hub.tiny import assert_comes_back, export_alone, shaken
from tests.models.test_mega import KINDS
from tests.training.tiny import LENGTH, mega

torch.set_num_threads(1)

CAUSAL = [kind for kind in KINDS if "causal" in kind]


def both(kind: str, **values: Any) -> tuple[Mega, Any]:
    ours = shaken(mega(**KINDS[kind] | values)).double().eval()
    form = form_of(ours.config)
    config = BundledConfig.from_dict(form.published_config(ours.config, form))
    theirs = (MegaForCausalLM if ours.config.is_decoder else MegaForMaskedLM)(config)
    theirs.load_state_dict(form.to_published(ours.state_dict(), ours.config))
    return ours, theirs.double().eval()


def token_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(4, 64, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_the_trained_model(kind: str):
    """In rows that are not a whole number of chunks."""
    ours, theirs = both(kind, max_positions=2 * BLOCK)
    ids = token_ids(2, BLOCK + 9)
    logits, found = ours.logits(ids), theirs(ids).logits
    torch.testing.assert_close(found, logits, rtol=1e-10, atol=1e-10)
    logits.square().sum().backward()
    found.square().sum().backward()
    form = form_of(ours.config)
    gradients = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    for name, gradient in form.to_published(gradients, ours.config).items():
        if "_float_tensor" not in name:
            other = theirs.get_parameter(name).grad
            torch.testing.assert_close(other, gradient, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("kind", ["both ways", "laplace, causal", "relu2, simple", "whole"])
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


@pytest.mark.parametrize("kind", CAUSAL)
def test_generation_with_a_cache_is_generation_without(kind: str):
    _, theirs = both(kind)
    prompt, mask = token_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    prompt[0, :5], mask[0, :5] = 1, 0
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    options |= {"attention_mask": mask, "return_dict_in_generate": True, "output_logits": True}
    cached, plain = (theirs.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    for one, other in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other)


def test_beams_take_their_memory_along():
    _, theirs = both("causal")
    options = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False}
    cached, plain = (
        theirs.generate(token_ids(2, 12), use_cache=use, **options) for use in (True, False)
    )
    assert torch.equal(cached, plain)


def test_what_cannot_be_is_refused():
    _, theirs = both("simple, causal, whole")
    with pytest.raises(ValueError, match="65 tokens are more than the 64 that"):
        theirs(token_ids(1, 65))
    hole = torch.tensor([[1, 0, 1, 1]])
    with pytest.raises(ValueError, match="padding can be before or after a text, not within"):
        theirs(token_ids(1, 4), attention_mask=hole)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("bundled") / "out"
    model = shaken(mega(**KINDS["laplace, causal"]))
    return out, model, export_alone(model, LENGTH, out, max_shard_size=20_000)


def test_a_fresh_process_finds_the_trained_model(exported: Any):
    out, _, found = exported
    assert (found.cases[1].length, found.generated) == (LENGTH, 4)
    assert found.cases[1].difference < 1e-12
    names = {"configuration_mega.py", "mega_layers.py", "modeling_mega.py"}
    assert names == {path.name for path in out.glob("*.py")}


def test_it_comes_back_bit_equal(exported: Any):
    out, model, _ = exported
    back = assert_comes_back(model, out)
    assert (back.architecture, back.objective, back.ignored) == ("mega", "causal", [])


@pytest.mark.slow
def test_a_masked_one_goes_out_and_comes_back_from_a_pickle(tmp_path: Any):
    model = shaken(mega(**KINDS["norms after, layernorm"]))
    found = export_alone(model, LENGTH, tmp_path / "out")
    assert found.cases[1].difference < 1e-12
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    )
    embedding = theirs.get_input_embeddings().weight
    assert theirs.mlm_head.weight.data_ptr() == embedding.data_ptr()
    (tmp_path / "out" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "out" / "pytorch_model.bin")
    back = read_published(tmp_path / "out")
    assert (back.objective, back.fresh) == ("masked", ())
    assert all(torch.equal(back.weights[n], w) for n, w in model.state_dict().items())


def test_a_pickle_is_read_too(exported: Any, tmp_path: Any):
    out, model, _ = exported
    weights = form_of(model.config).to_published(model.state_dict(), model.config)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((out / "config.json").read_text())
    assert_comes_back(model, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_comes_back(kind: str):
    config = mega(**KINDS[kind]).config
    form = form_of(config)
    back, ignored = config_from_published(form.published_config(config, form))
    assert back == config
    assert ignored == []


def test_weights_that_are_not_of_the_config_are_refused():
    model = mega()
    weights = form_of(model.config).to_published(model.state_dict(), model.config)
    with pytest.raises(UserError, match=r"lacks mega.layers.0.*compare num_hidden_layers"):
        from_published({n: w for n, w in weights.items() if "qk_bias" not in n}, model.config)
    with pytest.raises(UserError, match="add_cross_attention=true"):
        config_from_published({"model_type": "mega", "add_cross_attention": True})
