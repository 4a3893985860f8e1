"""Generation with a cache equals reading the whole text again for every token."""

import pytest
import torch

from lsp.core.errors import UserError
from lsp.models.layers.recent import Window
from lsp.models.longformer import Longformer
from lsp.models.longformer_config import LongformerConfig
from lsp.models.mega import Mega
from lsp.models.mega_config import MegaConfig
from lsp.models.nezha import Nezha
from lsp.models.nezha_config import NezhaConfig
from lsp.models.sampling import Rereading, generate_ids
from lsp.models.transformer_xl import TransformerXL
from lsp.models.transformer_xl_config import TransformerXLConfig
from tests.models import test_sampling

VOCABULARY = 40


def longformer(**changes):
    torch.manual_seed(0)
    values = {
        "attention_window": 8,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 102,
        "vocab_size": VOCABULARY,
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.2,
        "is_decoder": True,
    }
    return Longformer(LongformerConfig(**values | changes)).eval()


def reformer(layers, chunk):
    model = test_sampling.reformer(layers, chunk)
    model.lm_head.decoder.weight.data *= 0.1  # scores of some 1: the tolerance is absolute
    return model


def mega(**changes):
    torch.manual_seed(0)
    values = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "intermediate_size": 20,
        "ema_projection_size": 3,
        "shared_representation_size": 6,
        "nffn_hidden_size": 24,
        "use_chunking": True,
        "chunk_size": 8,
        "max_positions": 100,
        "vocab_size": VOCABULARY,
        "initializer_range": 0.2,
        "bidirectional": False,
        "is_decoder": True,
    }
    return Mega(MegaConfig(**values | changes)).eval()


def transformer_xl(**changes):
    torch.manual_seed(0)
    values = {
        "vocab_size": VOCABULARY,
        "cutoffs": [34],
        "d_model": 16,
        "d_embed": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 24,
        "n_layer": 3,
        "div_val": 2,
        "mem_len": 40,
        "clamp_len": -1,
        "same_length": False,
        "init_std": 0.2,
        "proj_init_std": 0.2,
        "tie_word_embeddings": False,
        "dropout": 0.0,
    }
    return TransformerXL(TransformerXLConfig(**values | changes)).eval()


def nezha(**changes):
    torch.manual_seed(0)
    values = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": VOCABULARY,
        "is_decoder": True,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    return Nezha(NezhaConfig(**values | changes)).eval()


MODELS = {
    "longformer": longformer,
    "longformer, windows that grow": lambda: longformer(attention_window=[4, 8, 16]),
    "longformer, dilated": lambda: longformer(attention_dilation=[1, [1, 2], [3, 4]]),
    "longformer, reversible": lambda: longformer(residual="reversible"),
    "longformer, reversible and dilated": lambda: longformer(
        residual="reversible", attention_dilation=[1, 2, [1, 3]]
    ),
    "mega": mega,
    "mega, whole, laplace": lambda: mega(use_chunking=False, attention_activation="laplace"),
    "mega, relu2, simple": lambda: mega(
        attention_activation="relu2", relative_positional_bias="simple"
    ),
    "mega, truncated": lambda: mega(truncation=5),
    "transformer_xl": transformer_xl,
    "transformer_xl, clamped": lambda: transformer_xl(clamp_len=5, untie_r=False, pre_lnorm=True),
    "transformer_xl, a window": lambda: transformer_xl(mem_len=8, same_length=True),
    "transformer_xl, learned distances": lambda: transformer_xl(attn_type=1, tgt_len=9),
    "transformer_xl, absolute": lambda: transformer_xl(attn_type=2),
    "transformer_xl, without memory": lambda: transformer_xl(mem_len=0),
    "nezha": lambda: nezha(max_relative_position=4),
    "nezha, all told apart": nezha,
    "reformer, local": lambda: reformer(["local"] * 3, 8),
    "reformer, within a chunk": lambda: reformer(["lsh", "local", "lsh"], 64),
}


@pytest.mark.parametrize("prompt", [1, 21], ids="prompt of {}".format)
@pytest.mark.parametrize("name", MODELS)
def test_every_step_scores_as_the_whole_text_does(name, prompt):
    model = MODELS[name]()
    text = torch.randint(0, VOCABULARY, (2, 28))
    twin, cache, whole = Rereading(model), model.new_cache(), []
    for start, stop in [(0, prompt), *((t, t + 1) for t in range(prompt, 28))]:
        got = model.step(text[:, start:stop], cache)
        want = twin.step(text[:, start:stop], whole)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"greedy": True}, {"top_p": 0.9, "seed": 4}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_same_tokens_are_chosen(name, options):
    model, prompt = MODELS[name](), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]

    def tokens(cache):
        return list(generate_ids(model, prompt, max_new_tokens=12, cache=cache, **options))

    assert tokens(True) == tokens(False)
    assert len(set(tokens(True))) > 1


def test_no_cache_can_equal_passes_of_lsh_attention():
    """A longer text changes what earlier tokens saw, so states that were kept are none of its."""
    text = torch.randint(0, VOCABULARY, (1, 64), generator=torch.Generator().manual_seed(1))
    for layers, same in ((["local", "local"], True), (["lsh", "lsh"], False)):
        model = reformer(layers, 8)
        with torch.no_grad():
            whole, part = model.logits(text), model.logits(text[:, :56])
        assert torch.allclose(whole[:, :40], part[:, :40], atol=1e-5) is same


def test_a_longformer_remembers_no_more_than_its_windows():
    model = longformer(attention_dilation=[1, 2, 3])
    cache = model.new_cache()
    for _ in range(3):
        model.step(torch.randint(0, VOCABULARY, (1, 30)), cache)
    assert [window.keys_and_values.shape[3] for window in cache.layers] == [9, 17, 25]
    assert cache.length == 90


@pytest.mark.parametrize("sizes", [[1] * 50, [3, 1, 1, 20, 1], [4, 1, 7]], ids=str)
def test_a_window_holds_the_newest(sizes):
    window, kept = Window(5), torch.empty(1, 1, 0, 2)
    for size in sizes:
        new = torch.randn(1, 1, size, 2)
        window.append(new, -new)
        kept = torch.cat((kept, new), dim=2)[:, :, -5:]
        assert torch.equal(window.keys_and_values[0], kept)
        assert torch.equal(window.keys_and_values[1], -kept)


def test_a_longformer_reads_to_its_last_position_whatever_its_dilation():
    model = longformer(attention_dilation=[1, 2, 3])  # 102 positions would be a multiple
    text = torch.randint(0, VOCABULARY, (1, 100))
    cache = model.new_cache()
    model.step(text[:, :99], cache)
    with torch.no_grad():
        want = model.logits(text)[:, -1]
        torch.testing.assert_close(model.step(text[:, 99:], cache), want, rtol=0, atol=1e-5)
        with pytest.raises(UserError, match="=101 is longer than the 100 positions"):
            model.logits(text[:, :1].expand(1, 101))


def test_what_a_longformer_cannot_continue():
    bidirectional = longformer(is_decoder=False)
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(UserError, match="is_decoder=false"):
        bidirectional.step(ids, bidirectional.new_cache())
    model = longformer()
    with pytest.raises(UserError, match="101 tokens are more than the 100 positions"):
        model.step(ids.expand(1, 3).repeat(1, 34)[:, :101], model.new_cache())
