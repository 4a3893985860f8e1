"""Logits, gradients and weights equal those of `transformers`, on tiny random models."""

import itertools
import logging

import pytest
import torch
import torch.nn.functional as F
from transformers import ReformerConfig as PublishedConfig
from transformers import ReformerForMaskedLM, ReformerModelWithLMHead

from lsp.core.errors import UserError
from lsp.models.memory import MemoryConfig
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from lsp.models.reformer_weights import from_published, to_published

torch.set_num_threads(1)
logging.getLogger("transformers").setLevel(logging.ERROR)

LENGTH, VOCABULARY = 64, 29
LAYERS = {"local": ["local"], "lsh": ["lsh", "lsh"], "mixed": ["local", "lsh", "local", "lsh"]}
BUCKETS = {"single": 8, "factorised": [4, 2], "automatic": None}
CHUNKS = {
    "before1": {},
    "before0": {"lsh_num_chunks_before": 0, "local_num_chunks_before": 0},
    "before2": {"lsh_num_chunks_before": 2, "local_num_chunks_before": 2},
    "after1": {"lsh_num_chunks_after": 1, "local_num_chunks_after": 1},
    "after2": {
        "lsh_num_chunks_before": 0,
        "lsh_num_chunks_after": 2,
        "local_num_chunks_after": 1,
        "local_num_chunks_before": 0,
    },
}


def _config(**changes) -> ReformerConfig:
    values = {
        "attn_layers": LAYERS["mixed"],
        "attention_head_size": 8,
        "num_attention_heads": 3,
        "hidden_size": 16,
        "feed_forward_size": 24,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 16,
        "axial_pos_shape": [4, 16],
        "axial_pos_embds_dim": [4, 12],
        "max_position_embeddings": LENGTH,
        "vocab_size": VOCABULARY,
        "hash_seed": 11,
        "num_buckets": 8,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
    }
    return ReformerConfig(**{**values, **changes})


def _pair(config: ReformerConfig, memory: MemoryConfig | None = None):
    """A published model with random weights and ours with the same ones."""
    torch.manual_seed(0)
    values = config.to_dict()
    values.pop("model_type")
    values.pop("num_hidden_layers")
    kind = ReformerModelWithLMHead if config.is_decoder else ReformerForMaskedLM
    published = kind(PublishedConfig(**values))
    ours = Reformer(config, memory)
    ours.load_state_dict(from_published(published.state_dict(), config))
    return published, ours


def _tokens(length: int = LENGTH, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (2, rows, length))
    return tokens[0], tokens[1]


def _assert_same(published, ours: Reformer, mask: torch.Tensor | None) -> None:
    """Logits within 1e-4, the loss, and every gradient within 1e-4 of its norm."""
    ids, labels = _tokens()
    segments = None if mask is None else mask.long()
    if mask is not None:
        labels = labels.masked_fill(mask == 0, -100)
    want = published(ids, attention_mask=mask).logits
    got = ours.logits(ids, segment_ids=segments)
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(got[real], want[real], rtol=0, atol=1e-4)

    want_loss = F.cross_entropy(want.flatten(0, 1), labels.flatten(), reduction="sum")
    want_loss.backward()
    loss, count = ours(ids, labels, segment_ids=segments)
    loss.backward()
    assert count == real.sum()
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=0)
    want_grads = dict(published.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = want_grads[name].grad
        difference = (parameter.grad - expected).norm() / expected.norm().clamp_min(1e-12)
        assert difference < 1e-4, f"{name}: {difference}"


GRID = [
    pytest.param(*values, id="-".join(str(v) for v in values))
    for values in itertools.product(
        ["causal", "bidirectional"],
        LAYERS,
        [1, 2, 4],
        BUCKETS,
        ["axial", "learned"],
        ["whole", "padded"],
    )
    if values[1] != "local" or (values[2] == 1 and values[3] == "single")
]


@pytest.mark.parametrize(("direction", "layers", "hashes", "buckets", "positions", "rows"), GRID)
def test_logits_and_gradients(direction, layers, hashes, buckets, positions, rows):
    config = _config(
        is_decoder=direction == "causal",
        attn_layers=LAYERS[layers],
        num_hashes=hashes,
        num_buckets=BUCKETS[buckets],
        axial_pos_embds=positions == "axial",
    )
    published, ours = _pair(config)
    mask = None
    if rows == "padded":
        mask = torch.ones(2, LENGTH, dtype=torch.long)
        mask[0, 41:] = 0
    _assert_same(published.train(), ours.train(), mask)
    assert ours.config.num_buckets == published.config.num_buckets


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_chunks_before_and_after(chunks: str, direction: str, padded: bool):
    causal = direction == "causal"
    if causal and chunks.startswith("after"):
        with pytest.raises(UserError, match="num_chunks_after"):
            Reformer(_config(is_decoder=True, **CHUNKS[chunks]))
        return
    published, ours = _pair(_config(is_decoder=causal, num_hashes=2, **CHUNKS[chunks]))
    mask = None
    if padded:
        mask = torch.ones(2, LENGTH, dtype=torch.long)
        mask[1, 33:] = 0
    _assert_same(published.train(), ours.train(), mask)


@pytest.mark.parametrize(
    "memory",
    [
        MemoryConfig(residual="recomputed"),
        MemoryConfig(residual="stored"),
        MemoryConfig(attention_groups=3, feed_forward_tiles=5, head_tiles=7),
    ],
    ids=["recomputed", "stored", "groups_and_tiles"],
)
def test_every_way_to_execute(memory: MemoryConfig):
    published, ours = _pair(_config(is_decoder=True, num_hashes=2), memory)
    _assert_same(published.train(), ours.train(), None)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "silu", "relu2", "quick_gelu"])
def test_activations(activation: str):
    published, ours = _pair(_config(is_decoder=True, hidden_act=activation))
    _assert_same(published.train(), ours.train(), None)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 40, 63])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_any_length_in_evaluation(direction: str, length: int):
    published, ours = _pair(_config(is_decoder=direction == "causal", num_hashes=2))
    ids, _ = _tokens(length)
    with torch.no_grad():
        want = published.eval()(ids).logits
        got = ours.eval().logits(ids)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_num_hashes_can_be_given_for_a_call():
    published, ours = _pair(_config(is_decoder=True))
    ids, _ = _tokens()
    with torch.no_grad():
        want = published.eval()(ids, num_hashes=4).logits
        got = ours.eval().logits(ids, num_hashes=4)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_weights_convert_both_ways_bit_for_bit():
    config = _config(is_decoder=True)
    published, ours = _pair(config)
    original = published.state_dict()
    original["lm_head.bias"].normal_()
    ours.load_state_dict(from_published(original, config))
    back = to_published(ours.state_dict())
    assert list(back) == list(original)
    for name, weight in original.items():
        assert torch.equal(back[name], weight), name
    published.load_state_dict(back, strict=True)


def test_old_published_files_carry_constants_that_are_dropped():
    config = _config(is_decoder=True)
    published, ours = _pair(config)
    attention = "reformer.encoder.layers.1.attention.self_attention"
    old = published.state_dict()
    old["lm_head.decoder.bias"] = old.pop("lm_head.bias")
    old[f"{attention}.mask_value_float16"] = torch.tensor(-1e4)
    old[f"{attention}.self_mask_value_float32"] = torch.tensor(-1e5)
    assert from_published(old, config).keys() == ours.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.decoder.weight"), "lacks lm_head.decoder.weight"),
        (lambda w: w.update({"lm_head.extra": torch.zeros(1)}), "has lm_head.extra"),
        (lambda w: w.update({"lm_head.bias": torch.zeros(3)}), r"lm_head.bias is \(3,\)"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_that_do_not_fit_are_refused(change, message: str):
    config = _config()
    weights = dict(Reformer(config).state_dict())
    change(weights)
    with pytest.raises(UserError, match=message):
        from_published(weights, config)


def test_defaults_are_the_published_ones():
    published = PublishedConfig().to_dict()
    for name, value in ReformerConfig().to_dict().items():
        expected = published[name]
        assert value == (list(expected) if isinstance(expected, tuple) else expected), name


def test_fresh_weights_have_the_published_spread():
    config = _config(hidden_size=64, axial_pos_embds_dim=[16, 48], initializer_range=0.02)
    torch.manual_seed(0)
    for name, weight in Reformer(config).state_dict().items():
        if "layer_norm" in name or name.endswith("bias"):
            assert weight.unique().numel() == 1, name
        else:
            std = 1.0 if ".weights." in name else 0.02
            assert abs(weight.std() / std - 1) < 0.2, name
