"""Cached generation equals that of `transformers`, and the uncached model where it must."""

import logging

import pytest
import torch
from transformers import ReformerConfig as PublishedConfig
from transformers import ReformerModelWithLMHead

from lsp.core.errors import UserError
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from lsp.models.reformer_generation import ReformerCache

torch.set_num_threads(1)
logging.getLogger("transformers").setLevel(logging.ERROR)

VOCABULARY = 29
LAYERS = {"local": ["local"] * 2, "lsh": ["lsh"] * 2, "mixed": ["local", "lsh", "local", "lsh"]}


def _model(**changes) -> Reformer:
    values = {
        "attn_layers": LAYERS["mixed"],
        "attention_head_size": 8,
        "num_attention_heads": 3,
        "hidden_size": 16,
        "feed_forward_size": 24,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 16,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [4, 12],
        "vocab_size": VOCABULARY,
        "hash_seed": 11,
        "num_buckets": 8,
        "initializer_range": 0.3,
        "is_decoder": True,
    }
    torch.manual_seed(0)
    return Reformer(ReformerConfig(**{**values, **changes})).eval()


def _published(model: Reformer) -> ReformerModelWithLMHead:
    values = model.config.to_dict()
    values.pop("model_type")
    values.pop("num_hidden_layers")
    published = ReformerModelWithLMHead(PublishedConfig(**values)).eval()
    published.load_state_dict(model.state_dict())
    return published


def _text(length: int, rows: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, VOCABULARY, (rows, length))


@pytest.mark.parametrize("buckets", [8, [4, 2]], ids=["single", "factorised"])
@pytest.mark.parametrize(
    ("prompt", "hashes"), [(3, 2), (16, 2), (17, 1), (32, 2), (48, 4)], ids=str
)
@pytest.mark.parametrize("layers", LAYERS)
def test_steps_equal_the_published_cache(layers: str, prompt: int, hashes: int, buckets):
    model = _model(attn_layers=LAYERS[layers], num_hashes=hashes, num_buckets=buckets)
    published, text = _published(model), _text(prompt + 20)
    cache = model.new_cache()
    got = model.step(text[:, :prompt], cache)
    with torch.no_grad():
        out = published(text[:, :prompt], use_cache=True)
        past = out.past_buckets_states
        torch.testing.assert_close(got, out.logits[:, -1], rtol=0, atol=1e-4)
        for t in range(prompt, prompt + 20):
            got = model.step(text[:, t : t + 1], cache)
            out = published(text[:, t : t + 1], use_cache=True, past_buckets_states=past)
            if not _same_buckets(cache, past):
                assert t > prompt + 5
                return
            torch.testing.assert_close(got, out.logits[:, -1], rtol=0, atol=1e-4)


def _same_buckets(cache: ReformerCache, past) -> bool:
    """Whether no token fell into another bucket by rounding: one in 100,000 is that close."""
    for layer, theirs in zip(cache.layers, past.buckets_cache, strict=False):
        if layer.buckets is not None:
            ours_BNRT = layer.buckets.value.long()
            offset_R1 = 8 * torch.arange(ours_BNRT.shape[2])[:, None]
            if not torch.equal(ours_BNRT + offset_R1, theirs):
                return False
    return True


@pytest.mark.parametrize("before", [0, 1, 2])
def test_local_layers_give_the_scores_of_the_whole_text(before: int):
    model = _model(attn_layers=["local"] * 3, local_num_chunks_before=before)
    text, cache = _text(60, rows=2), model.new_cache()
    # On a ring of fewer chunks than a query sees, the whole text repeats itself, as published.
    prompt = 8 * before + 3
    model.step(text[:, :prompt], cache)
    for t in range(prompt, 60):
        got = model.step(text[:, t : t + 1], cache)
        want = model.logits(text[:, : t + 1])[:, -1]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_within_one_chunk_every_layer_gives_the_scores_of_the_whole_text():
    model = _model(num_hashes=2)
    text, cache = _text(16, rows=2), model.new_cache()
    for t in range(16):
        got = model.step(text[:, t : t + 1], cache)
        want = model.logits(text[:, : t + 1])[:, -1]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_rows_of_a_batch_do_not_touch_each_other():
    model, text = _model(num_hashes=2), _text(50, rows=3)

    def last(rows: torch.Tensor) -> torch.Tensor:
        cache = model.new_cache()
        model.step(rows[:, :32], cache)
        return torch.stack([model.step(rows[:, t : t + 1], cache) for t in range(32, 50)], dim=1)

    together, alone = last(text), torch.cat([last(row[None]) for row in text])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_several_tokens_at_once_equal_one_by_one():
    model, text = _model(), _text(40)
    one, many = model.new_cache(), model.new_cache()
    model.step(text[:, :20], one)
    model.step(text[:, :20], many)
    for t in range(20, 40):
        want = model.step(text[:, t : t + 1], one)
    assert torch.equal(model.step(text[:, 20:], many), want)


def test_without_a_hash_seed_generation_is_deterministic():
    model, text = _model(hash_seed=None), _text(50)

    def last() -> torch.Tensor:
        cache = model.new_cache()
        model.step(text[:, :40], cache)
        return model.step(text[:, 40:], cache)

    assert torch.equal(last(), last())


def test_buckets_are_chosen_for_a_text_that_outgrows_its_first_chunk():
    model, text = _model(num_buckets=None), _text(40)
    cache = model.new_cache()
    for t in range(40):
        scores = model.step(text[:, t : t + 1], cache)
    assert scores.isfinite().all()
    assert model.config.num_buckets == 16


def test_what_cannot_generate_is_refused():
    model = _model(is_decoder=False)
    with pytest.raises(UserError, match="is_decoder=false"):
        model.step(_text(3), model.new_cache())
    model = _model()
    with pytest.raises(UserError, match="128 positions"):
        model.step(_text(129), model.new_cache())
    with pytest.raises(UserError, match="empty"):
        model.step(_text(0), model.new_cache())
