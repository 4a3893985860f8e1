"""Generation that remembers what was read scores as reading the whole text again does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsp.core.errors import UserError
from lsp.models.hub import caches
from lsp.models.hub.adapter import HubModel
from lsp.models.hub.build import build
from lsp.models.hub.table import ROWS
from lsp.models.sampling import Rereading, generate_ids
from tests.models.hub.tiny import LENGTH, VOCABULARY, built

torch.set_num_threads(1)

REREAD = ("openai-gpt", "prophetnet", "switch_transformers", "xlm-prophetnet")
"""Rows without a cache that agrees."""


def objective_of(model_type: str) -> str:
    row = ROWS[model_type]
    return "causal" if "causal" in row.objectives else row.objectives[0]


WRITERS = [
    name
    for name, row in ROWS.items()
    if "causal" in row.objectives or row.kind == "encoder_decoder"
]


def writer(model_type: str, **changes: Any) -> HubModel:
    """A model whose tokens depend on all of its text."""
    model = built(model_type, objective_of(model_type), **changes).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(2)
    return model


def assert_same(model: HubModel, prompt: int = 9) -> None:
    """Scores and greedy tokens of a prompt, of four tokens one by one, and of two at once."""
    generator = torch.Generator().manual_seed(1)
    unread = torch.randint(0, VOCABULARY, (2, prompt), generator=generator)
    twin, cache, whole = Rereading(model), model.new_cache(), []
    for count in (1, 1, 1, 1, 2, 0):
        got, want = model.step(unread, cache), twin.step(unread, whole)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        assert torch.equal(got.argmax(-1), want.argmax(-1))
        unread = got.topk(max(count, 1)).indices


@pytest.mark.parametrize("model_type", WRITERS)
def test_every_step_scores_as_the_whole_text_does(model_type: str):
    model = writer(model_type)
    assert caches.exact(model) == (model_type not in REREAD)
    blocks = ROWS[model_type].kind == "encoder_decoder"  # which need rows that are long enough
    assert_same(model, 20 if blocks else 9)


ROTARY = {"rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("mixtral", {"sliding_window": 4}),
        ("starcoder2", {"sliding_window": 4}),
        ("falcon", {"alibi": True}),
        ("gpt_bigcode", {"multi_query": False}),
        ("xlnet", {"mem_len": 4, "reuse_len": 2}),
        ("llama", {"rope_parameters": {"rope_type": "linear", **ROTARY}}),
    ],
    ids=str,
)
def test_settings_that_change_what_is_remembered(model_type: str, changes: dict[str, Any]):
    model = writer(model_type, **changes)
    assert caches.exact(model)
    assert_same(model)


def test_positions_that_a_longer_text_changes_are_read_again():
    longer = {"rope_type": "dynamic", **ROTARY}
    model = writer("llama", rope_parameters=longer, max_position_embeddings=LENGTH)
    assert not caches.exact(model)
    assert_same(model, LENGTH - 2)


@pytest.mark.parametrize("attention", ["lsp", "sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["gpt2", "bart"])
def test_however_attention_is_computed(model_type: str, attention: str):
    model = writer(model_type)
    model.config.attention = attention
    again = build(model.config).eval()
    again.load_state_dict(model.state_dict())
    assert_same(again)


@pytest.mark.parametrize("model_type", ["gpt2", "bart", "openai-gpt"])
def test_the_end_of_the_positions(model_type: str):
    model = writer(model_type)
    left = 2
    prompt = list(range(7, 7 + LENGTH - left))
    if not model.config.answers:
        made = generate_ids(model, prompt, max_new_tokens=99, greedy=True)
        assert len(list(made)) == left
    for reader in (model, Rereading(model)):
        cache = reader.new_cache()
        reader.step(torch.tensor([prompt]), cache)
        with pytest.raises(UserError, match=f"are more than the {LENGTH} positions of the model"):
            reader.step(torch.zeros(1, LENGTH, dtype=torch.int64), cache)


def test_no_cache_reads_everything_again():
    for model_type in ("gpt2", "t5"):
        model, lengths = writer(model_type), []
        body = model.head.body if model_type == "gpt2" else model.model.get_decoder()
        body.register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        for cache in (True, False):
            lengths.clear()
            list(generate_ids(model, [7, 8, 9], max_new_tokens=4, greedy=True, cache=cache))
            first = lengths[0]
            assert lengths[1:] == ([1] * 3 if cache else [first + 1, first + 2, first + 3])
