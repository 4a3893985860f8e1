"""Reading published checkpoints: made by `transformers`, and by nobody with care."""

import json
import pickle
import shutil
from collections import Counter

import pytest
import torch
import transformers

from lsp.core.errors import UserError
from lsp.hub.importing import import_tokenizer, locate, read_published
from lsp.hub.published import form_of
from lsp.models.longformer import Longformer
from lsp.models.reformer import Reformer
from tests.hub.tiny import tiny_config, write_byte_tokenizer
from tests.training.tiny import longformer


def published_class(config):
    name = "ReformerModelWithLMHead" if config.is_decoder else "ReformerForMaskedLM"
    torch.manual_seed(1)
    model = getattr(transformers, name)(transformers.ReformerConfig.from_dict(config.to_dict()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def publish(folder, form, **changes):
    """A folder as `transformers` writes it, in one of the ways of its releases."""
    model = published_class(tiny_config(**changes))
    if form == "shards":
        model.save_pretrained(folder, max_shard_size="20KB")
    else:
        model.save_pretrained(folder)
    if form == "pickle":
        # As in 2020: constants of masking, and the bias under two names.
        constants = {
            "reformer.encoder.layers.1.attention.self_attention.self_mask_value_float16": -1e3,
            "reformer.encoder.layers.1.attention.self_attention.mask_value_float32": -1e9,
        }
        state = model.state_dict() | {n: torch.tensor(v) for n, v in constants.items()}
        state["lm_head.decoder.bias"] = state["lm_head.bias"]
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return model


@pytest.mark.parametrize("form", ["safetensors", "shards", "pickle"])
def test_weights_are_those_published(tmp_path, form):
    theirs = publish(tmp_path, form)
    published = read_published(tmp_path)
    assert (published.architecture, published.objective) == ("reformer", "causal")
    for name, weight in theirs.state_dict().items():
        assert torch.equal(published.weights[name], weight)
    ours = Reformer(published.config).eval()
    ours.load_state_dict(published.weights)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.allclose(ours.logits(ids), theirs(ids).logits, atol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "shards", "pickle", "pickles"])
def test_a_longformer_is_read_however_it_is_stored(tmp_path, form):
    config = longformer().config
    values = form_of(config).published_config(config, form_of(config))
    torch.manual_seed(0)
    theirs = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**values)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="10KB" if form == "shards" else "5GB")
    if "pickle" in form:
        # As in 2020: numbers of positions, and what is tied under both names.
        state = theirs.state_dict()
        state["longformer.embeddings.position_ids"] = torch.arange(66)[None]
        (tmp_path / "model.safetensors").unlink()
        if form == "pickle":
            torch.save(state, tmp_path / "pytorch_model.bin")
        else:
            files = {n: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, n in enumerate(state)}
            for file in set(files.values()):
                torch.save({n: w for n, w in state.items() if files[n] == file}, tmp_path / file)
            index = {"metadata": {}, "weight_map": files}
            (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    published = read_published(tmp_path)
    assert (published.architecture, published.objective) == ("longformer", "masked")
    ours = Longformer(published.config).eval()
    ours.load_state_dict(published.weights)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.allclose(ours.logits(ids), theirs(ids).logits, atol=1e-5)


def test_masked_and_half_precision_weights_become_fp32(tmp_path):
    publish(tmp_path, "safetensors", is_decoder=False)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    published = read_published(tmp_path)
    assert published.objective == "masked"
    assert {weight.dtype for weight in published.weights.values()} == {torch.float32}


def change_config(folder, **changes):
    file = folder / "config.json"
    content = {k: v for k, v in (json.loads(file.read_text()) | changes).items() if v != "absent"}
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type=gpt2 is not known"),
        ({"attn_layers": ["local"]}, "has reformer.encoder.layers.1.* and .* more"),
        ({"attn_layers": ["local", "lsh", "lsh"]}, "lacks reformer.encoder.layers.2"),
        ({"vocab_size": 300}, "is .260, 32. in the published folder, .* asks for .300, 32"),
        ({"axial_pos_shape": [4, 16]}, "is .* in the published folder"),
        ({"hidden_dropout_prob": 2.0}, "hidden_dropout_prob=2.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_weights_and_config_that_do_not_fit(tmp_path, changes, message):
    publish(tmp_path, "safetensors")
    change_config(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        read_published(tmp_path)


def test_half_a_head_is_refused(tmp_path):
    theirs = publish(tmp_path, "pickle")
    state = theirs.state_dict()
    del state["lm_head.decoder.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="lacks lm_head"):
        read_published(tmp_path)


class TestLocate:
    def test_a_folder(self, tmp_path):
        assert locate(str(tmp_path)) == tmp_path

    def test_a_file(self, tmp_path):
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(UserError, match="is a file: name the folder"):
            locate(str(tmp_path / "model.safetensors"))

    @pytest.mark.parametrize("name", ["./absent", "/absent/x", "a/b/c", "~/absent", "a//b"])
    def test_no_folder_and_no_name(self, name):
        with pytest.raises(UserError, match="is no folder, and not the name of a Hub repository"):
            locate(name)

    @pytest.mark.parametrize("name", ["no-such-user/no-such-model", "not a name", "absent"])
    def test_out_of_reach(self, name):
        with pytest.raises(UserError, match=f"from={name} is no local folder, and cannot be"):
            locate(name)

    @pytest.mark.parametrize("kind", ["safetensors", "bin"])
    def test_only_what_is_needed_is_fetched(self, tmp_path, monkeypatch, kind):
        import huggingface_hub

        asked = []

        def snapshot(name, allow_patterns):
            asked.append((name, allow_patterns[-1]))
            if f"*.{kind}" in allow_patterns:
                (tmp_path / f"weights.{kind}").touch()
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        assert locate("google/reformer-enwik8") == tmp_path
        patterns = ["*.safetensors"] if kind == "safetensors" else ["*.safetensors", "*.bin"]
        assert asked == [("google/reformer-enwik8", pattern) for pattern in patterns]


class TestTokenizer:
    def test_is_copied(self, tmp_path):
        publish(tmp_path / "in", "safetensors")
        write_byte_tokenizer(tmp_path / "in")
        told = import_tokenizer(read_published(tmp_path / "in"), tmp_path / "out")
        assert told == "260 tokens"
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert tokenizer("a <eos> b").input_ids == [4 + byte for byte in b"a <eos> b"]

    def test_there_may_be_none(self, tmp_path):
        publish(tmp_path / "in", "safetensors")
        assert import_tokenizer(read_published(tmp_path / "in"), tmp_path / "out") is None
        assert not (tmp_path / "out").exists()

    def test_bytes_as_the_published_enwik8_model_has_them(self, tmp_path):
        publish(tmp_path / "in", "safetensors", vocab_size=258)
        told = import_tokenizer(read_published(tmp_path / "in"), tmp_path / "out")
        assert told.startswith("bytes")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        text = "naïve\x00\n<eos> 日本"
        assert tokenizer(text).input_ids == [2 + byte for byte in text.encode()]
        assert tokenizer.decode([2 + byte for byte in text.encode()]) == text
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 258)

    def test_vocabulary_that_transformers_opens_no_more(self, tmp_path):
        """As Transformer-XL's was published: a pickle, of which nothing is run."""
        publish(tmp_path / "in", "safetensors")
        words = ["<eos>", "<unk>", "the", "fox", "'s"]
        pickled = pickle.dumps({"idx2sym": words, "counter": Counter(the=2), "lower_case": True})
        (tmp_path / "in" / "vocab.pkl").write_bytes(pickled)
        told = import_tokenizer(read_published(tmp_path / "in"), tmp_path / "out")
        assert told == "5 tokens"
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert tokenizer("The fox's den").input_ids == [2, 3, 4, 1]

    def test_with_more_tokens_than_the_model(self, tmp_path):
        publish(tmp_path / "in", "safetensors", vocab_size=100)
        write_byte_tokenizer(tmp_path / "in")
        with pytest.raises(UserError, match="tokenizer has 260 tokens, and its model only vocab"):
            import_tokenizer(read_published(tmp_path / "in"), tmp_path / "out")

    def test_that_is_damaged(self, tmp_path):
        publish(tmp_path / "in", "safetensors")
        write_byte_tokenizer(tmp_path / "in")
        (tmp_path / "in" / "tokenizer.json").write_text("{")
        with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
            import_tokenizer(read_published(tmp_path / "in"), tmp_path / "out")


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json: name a folder or a Hub repository"):
        read_published(tmp_path)


def test_a_folder_without_weights(tmp_path):
    publish(tmp_path / "in", "safetensors")
    (tmp_path / "out").mkdir()
    shutil.copy(tmp_path / "in" / "config.json", tmp_path / "out")
    with pytest.raises(UserError, match="has no weights"):
        read_published(tmp_path / "out")
