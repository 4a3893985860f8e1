"""Transformer-XL against what the published implementations computed: `tests/fixtures/`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lsp.models.memory import MemoryConfig
from lsp.models.transformer_xl import TransformerXL
from lsp.models.transformer_xl_config import TransformerXLConfig
from lsp.models.transformer_xl_weights import from_published, to_published

FIXTURES = Path(__file__).parents[1] / "fixtures"
MEMORY = {"recomputed in tiles": MemoryConfig("recomputed", 3, 3), "stored": MemoryConfig("stored")}


def fixture(name):
    described = json.loads((FIXTURES / f"{name}.json").read_text())
    return described, load_file(FIXTURES / f"{name}.safetensors")


CASES = {
    f"{source}: {name}": (source, name)
    for source in ("transformers", "original")
    for name in fixture(f"transfo_xl_{source}")[0]
}


def by_name(flat, shapes):
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    parts = flat.split(sizes)
    return {n: part.view(shape) for part, (n, shape) in zip(parts, shapes.items(), strict=True)}


def assert_close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("case", CASES)
def test_losses_memories_and_gradients(case, memory):
    source, name = CASES[case]
    described, tensors = fixture(f"transfo_xl_{source}")
    found = {key.rpartition("/")[2]: x for key, x in tensors.items() if key.startswith(f"{name}/")}
    values, shapes = described[name]["config"], described[name]["weights"]
    # The original code begins with nothing where transformers begins with zeros.
    options = {} if source == "transformers" else {"zero_memory": False, "tgt_len": 7}
    config = TransformerXLConfig.from_dict({**values, **options})
    model = TransformerXL(config, MEMORY[memory])
    model.load_state_dict(from_published(by_name(found["weights"], shapes), config))
    recalled = None
    for number, row in enumerate(found["ids"].long()):
        ids, labels = row[:, :-1], row[:, 1:]
        model.recall(recalled)
        scores = model.logits(ids)
        losses = -scores.gather(-1, labels[..., None])[..., 0]
        assert_close(losses, found["losses"][number])
        model.recall(recalled)
        total, count = model(ids, labels)
        assert_close(total / count, found["losses"][number].mean())
        recalled = model.remembered()
        known = min(config.mem_len, found["memories"].shape[3])
        for layer in range(config.n_layer):
            assert_close(recalled[f"layer_{layer}"][:, -known:], found["memories"][number, layer])
    model.zero_grad()
    (total / count).backward()
    wanted = by_name(found["gradients"], shapes)
    got = {n: p.grad for n, p in model.named_parameters()}
    got = to_published(got, config)
    assert wanted.keys() <= got.keys()
    for parameter, gradient in wanted.items():
        assert_close(got[parameter], gradient)


def test_the_published_fixture():
    described, found = fixture("transfo-xl")
    values = {key[4:]: value for key, value in described.items() if key.startswith("cfg/")}
    config = TransformerXLConfig.from_dict(values)
    state = {key[6:]: x for key, x in found.items() if key.startswith("state/")}
    model = TransformerXL(config).eval()
    model.load_state_dict(from_published(state, config))
    ids = found["batch/input_ids"]
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    total, count = model(ids, labels)
    assert_close(total / count, found["out/loss"])
    memory = model.remembered()
    for layer in range(2):
        assert_close(memory[f"layer_{layer}"], found[f"out/mems/{layer}"].transpose(0, 1))
    assert_close(sorted_losses(model, ids, None), found["out/losses"].flatten().sort().values)
    # These were computed for the same rows in the other order.
    again = found["out/losses_with_mems"].flatten().sort().values
    assert_close(sorted_losses(model, ids.flip(0), memory), again)


def sorted_losses(model, ids, memory):
    """The published losses come cluster by cluster."""
    model.recall(memory)
    scores = model.logits(ids)[:, :-1]
    return (-scores.gather(-1, ids[:, 1:, None])).flatten().sort().values


@pytest.mark.parametrize("name", ["div_val 2", "norms first, shared biases", "narrow embedding"])
def test_weights_go_out_and_come_back(name):
    described, tensors = fixture("transfo_xl_transformers")
    config = TransformerXLConfig.from_dict(described[name]["config"])
    shapes = described[name]["weights"]
    weights = by_name(tensors[f"{name}/weights"], shapes)
    model = TransformerXL(config)
    model.load_state_dict(from_published(weights, config))
    published = to_published(model.state_dict(), config)
    for key, weight in weights.items():
        assert torch.equal(published[key], weight)
    other = TransformerXL(config)
    other.load_state_dict(from_published(published, config))
    for key, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], weight)
