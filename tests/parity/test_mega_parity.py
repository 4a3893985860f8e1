"""Mega against what the published implementation computed: `tests/fixtures/`."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from lsp.hub.bundled.configuration_mega import MegaConfig as BundledConfig
from lsp.hub.bundled.modeling_mega import MegaForCausalLM, MegaForMaskedLM
from lsp.hub.published import config_from_published
from lsp.models.mega import Mega
from lsp.models.mega_weights import from_published, to_published
from lsp.models.memory import MemoryConfig

torch.set_num_threads(1)

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ("mega", "mega-causal", "mega-causal-chunk16")
MEMORIES = {
    "stored": MemoryConfig("stored"),
    "recomputed": MemoryConfig("recomputed"),
    "tiled": MemoryConfig("recomputed", 3, 5, tile_megabytes=0.01),
}


def fixture(name):
    described = json.loads((FIXTURES / f"{name}.json").read_text())
    values = {key[4:]: value for key, value in described.items() if key.startswith("cfg/")}
    values |= {"model_type": "mega", "architectures": [described["cls"]]}
    found = load_file(FIXTURES / f"{name}.safetensors")
    state = {key[6:]: x for key, x in found.items() if key.startswith("state/")}
    return values, state, found


def opened(name, memory="stored"):
    values, state, found = fixture(name)
    config, ignored = config_from_published(values)
    assert ignored == []
    model = Mega(config, MEMORIES[memory])
    model.load_state_dict(from_published(state, config))
    return model, found


def assert_close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def shifted(model, labels):
    if not model.config.is_decoder:
        return labels
    return F.pad(labels[:, 1:], (0, 1), value=-100)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_loss(name, memory):
    model, found = opened(name, memory)
    ids, labels = found["batch/input_ids"], found["batch/labels"]
    assert_close(model.logits(ids), found["out/logits"])
    total, count = model(ids, shifted(model, labels))
    assert_close(total / count, found["out/loss"])


@pytest.mark.parametrize("name", ["mega", "mega-causal-chunk16"])
def test_gradients_are_finite_differences(name):
    """Of a number in each of the weights of the first layer and of the head, in float64."""
    model, found = opened(name, "recomputed")
    model.double()
    ids, labels = found["batch/input_ids"][:1], shifted(model, found["batch/labels"][:1])

    def loss():
        return F.cross_entropy(model.logits(ids).flatten(0, 1), labels.flatten())

    loss().backward()
    chosen = [(n, p) for n, p in model.named_parameters() if "layers.1." not in n]
    for parameter_name, parameter in chosen:
        flat = parameter.detach().view(-1)
        place = int(parameter.grad.abs().argmax())
        losses = []
        for step in (1e-5, -2e-5):
            flat[place] += step
            with torch.no_grad():
                losses.append(float(loss()))
        flat[place] += 1e-5
        slope = (losses[0] - losses[1]) / 2e-5
        gradient = float(parameter.grad.view(-1)[place])
        assert gradient == pytest.approx(slope, rel=1e-4, abs=1e-9), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_exports_computes_the_same(name):
    values, state, found = fixture(name)
    kind = MegaForCausalLM if "causal" in name else MegaForMaskedLM
    model = kind(BundledConfig(**values)).eval()
    model.load_state_dict(state)  # every name, and no other
    with torch.no_grad():
        out = model(found["batch/input_ids"], labels=found["batch/labels"])
    assert_close(out.logits, found["out/logits"])
    assert_close(out.loss, found["out/loss"])


@pytest.mark.parametrize("name", NAMES)
def test_weights_go_out_and_come_back(name):
    model, _ = opened(name)
    _, state, _ = fixture(name)
    published = to_published(model.state_dict(), model.config)
    assert published.keys() == state.keys()
    assert all(torch.equal(published[key], weight) for key, weight in state.items())
