"""The Transformer-XL that exports bring along: the trained one's scores, memories, and weights."""

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from lsp.core.errors import UserError
from lsp.hub.bundled.configuration_transfo_xl import TransfoXLConfig
from lsp.hub.bundled.modeling_transfo_xl import (
    BLOCK,
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
)
from lsp.hub.importing import read_published
from lsp.hub.published import config_from_published, form_of
from lsp.models.transformer_xl import TransformerXL
from tests.hub.tiny import assert_comes_back, export_alone, shaken
from tests.training.tiny import transformer_xl

torch.set_num_threads(1)

LENGTH = 40
PUBLISHED = {"zero_memory": True, "same_length": True, "mem_len": 24, "clamp_len": 20}
KINDS: dict[str, dict[str, Any]] = {
    "as published": PUBLISHED,
    "nothing before a text": {},
    "alike clusters": {"div_val": 1, "d_embed": 24},
    "no clusters": {"div_val": 1, "cutoffs": []},
    "norms first, shared biases": {"pre_lnorm": True, "untie_r": False},
    "own projections": {"proj_share_all_but_first": False, "div_val": 4},
    "nothing tied": {"tie_word_embeddings": False, "tie_projs": [False, False, False]},
    "learned distances": {"attn_type": 1, "tgt_len": 16, "clamp_len": -1},
    "sinusoids": {"attn_type": 2, "pre_lnorm": True},
    "learned places": {"attn_type": 3, "tgt_len": 40, "zero_memory": True},
}
SMALL = {"n_head": 4, "d_head": 8, "mem_len": 24}


def ours(kind: str, **values: Any) -> TransformerXL:
    return shaken(transformer_xl(**SMALL | KINDS[kind] | values))


def both(kind: str, **values: Any) -> tuple[TransformerXL, TransfoXLLMHeadModel]:
    model = ours(kind, **values).double()
    form = form_of(model.config)
    theirs = TransfoXLLMHeadModel(
        TransfoXLConfig.from_dict(form.published_config(model.config, form))
    )
    theirs.load_state_dict(form.to_published(model.state_dict(), model.config))
    return model, theirs.double().eval()


def token_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_memories_of_a_text_in_pieces(kind: str):
    model, theirs = both(kind)
    ids, mems, memory = token_ids(2, 100), None, None
    with torch.no_grad():
        for row in ids.split([30, 33, 37], dim=1):
            model.recall(memory)
            scores = model.logits(row)
            memory = model.remembered()
            out = theirs(row, mems=mems)
            mems = out.mems
            # Ours are in fp32 from the head on.
            torch.testing.assert_close(out.logits.float(), scores.float(), rtol=1e-5, atol=2e-6)
            for layer, found in enumerate(mems):
                expected = memory[f"layer_{layer}"].transpose(0, 1)
                torch.testing.assert_close(found, expected[-len(found) :])


def test_rows_longer_than_a_block():
    for kind in ("as published", "learned distances"):
        model, theirs = both(kind)
        ids = token_ids(1, BLOCK + 30)
        with torch.no_grad():
            found, expected = theirs(ids).logits.float(), model.logits(ids).float()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def test_labels_give_the_loss_of_each_position_and_its_gradients():
    model, theirs = both("as published")
    ids = token_ids(2, LENGTH)
    labels = ids.roll(-1, 1)
    labels[:, -1] = labels[0, 5:9] = -100
    loss, count = model(ids, labels)
    (loss / count).backward()
    given = ids.clone()
    given[0, 6:10] = -100
    found = theirs(ids, labels=given, output_attentions=True, output_hidden_states=True)
    found.loss.backward()
    torch.testing.assert_close(found.loss.float(), loss / count)
    assert not theirs.accepts_loss_kwargs  # a Trainer that accumulates gradients asks
    assert found.losses.shape == (2, LENGTH - 1)
    assert (found.losses[0, 5:9] == 0).all()
    assert [tuple(a.shape) for a in found.attentions] == [(2, 4, LENGTH, 24 + LENGTH)] * 2
    torch.testing.assert_close(found.attentions[0].sum(-1), torch.ones(2, 4, LENGTH).double())
    assert len(found.hidden_states) == 3
    gradient = model.transformer.layers[0].dec_attn.r_net.weight.grad
    there = theirs.transformer.layers[0].dec_attn.r_net.weight.grad
    torch.testing.assert_close(there, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["as published", "learned distances"])
def test_generation_with_a_memory_is_generation_without(kind: str):
    # Each token sees as many before it, however they are remembered.
    _, theirs = both(kind, same_length=True)
    prompt = token_ids(2, 12)
    options: dict[str, Any] = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    options |= {"attention_mask": torch.ones_like(prompt)}  # as tokenizers give it
    remembered, plain = (theirs.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert torch.equal(remembered.sequences, plain.sequences)
    for one, other in zip(remembered.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other)
    beams = theirs.generate(prompt, num_beams=3, max_new_tokens=5, min_new_tokens=5)
    assert beams.shape == (2, 17)


def test_far_places_are_exact_in_half_precision():
    _, theirs = both("sinusoids")
    like = torch.zeros(1, dtype=torch.double)
    exact = theirs.transformer.places(2000, like)
    assert torch.equal(theirs.bfloat16().transformer.places(2000, like), exact)


def test_rows_are_not_padded_on_the_left():
    _, theirs = both("as published")
    mask = torch.ones(1, 8, dtype=torch.long)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="padded on the right alone"):
        theirs(token_ids(1, 8), attention_mask=mask)


def test_a_token_sees_itself_at_least():
    _, theirs = both("as published")
    with pytest.raises(ValueError, match="give 1 or more"):
        theirs.reset_memory_length(0)


def test_a_classifier_reads_the_last_token():
    config = TransfoXLConfig(
        **{"d_model": 32, "d_embed": 32, "n_layer": 1, "n_head": 2, "d_head": 16, "d_inner": 8},
        **{"vocab_size": 64, "cutoffs": [], "div_val": 1, "pad_token_id": 0, "num_labels": 3},
    )
    model = TransfoXLForSequenceClassification(config).eval()
    ids = token_ids(2, 9).clamp(min=1)
    ids[0, 6:] = 0
    with torch.no_grad():
        found = model(ids, labels=torch.tensor([0, 2]))
        alone = model(ids[:1, :6])
    torch.testing.assert_close(found.logits[:1], alone.logits)
    expected = torch.nn.functional.cross_entropy(found.logits, torch.tensor([0, 2]))
    torch.testing.assert_close(found.loss, expected)
    # Rows may be padded with a token that they end with, as <eos>.
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, 7:] = 0
    with torch.no_grad():
        masked = model(ids, attention_mask=mask).logits[:1]
        whole = model(ids[:1, :7], attention_mask=mask[:1, :7]).logits
    torch.testing.assert_close(masked, whole)
    assert not torch.allclose(masked, alone.logits)
    model.config.pad_token_id = None
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[:1], masked)
    with pytest.raises(ValueError, match="give an attention_mask"):
        model(ids)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("bundled") / "out"
    model = ours("nothing before a text")
    found = export_alone(model, LENGTH, out, max_shard_size=20_000)
    return out, model, found


def test_a_fresh_process_finds_the_trained_model(exported):
    out, _, found = exported
    assert (found.cases[1].length, found.generated) == (LENGTH, 4)
    assert found.cases[1].difference < 2e-6
    names = {path.name for path in out.glob("*.py")}
    assert names == {
        "configuration_transfo_xl.py",
        "modeling_transfo_xl.py",
        "transfo_xl_adaptive.py",
    }
    kept = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert "crit.out_layers.1.weight" not in kept  # tied: one weight, written once
    card = (out / "README.md").read_text()
    for text in (
        "It reads texts of any length",
        "`transformers` 4.37.2 has a class of its own for it",
        "mems=[torch.zeros(0, 1, 32)] * 2",
    ):
        assert text in card


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_comes_back(kind: str):
    config = ours(kind).config
    form = form_of(config)
    back, ignored = config_from_published(form.published_config(config, form))
    assert (back, ignored) == (config, [])


def test_it_comes_back_bit_equal(exported):
    out, model, _ = exported
    assert assert_comes_back(model, out).architecture == "transformer_xl"


@pytest.mark.parametrize("kind", ["as published", "no clusters", "alike clusters", "nothing tied"])
def test_a_folder_of_the_last_release_is_read(kind: str, tmp_path):
    """A pickle with every tied weight under all of its names, and a config of that time."""
    model = ours(kind, zero_memory=True, memory_across_documents=True)
    form = form_of(model.config)
    torch.save(form.to_published(model.state_dict(), model.config), tmp_path / "pytorch_model.bin")
    config = form.published_config(model.config, form)
    for key in ("zero_memory", "memory_across_documents", "tgt_len", "auto_map"):
        del config[key]
    config |= {"tie_weight": True, "tie_projs": model.config.tied_projections, "ext_len": 0}
    config |= {"n_token": config["vocab_size"], "task_specific_params": {}, "tgt_len": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    back = read_published(tmp_path)
    assert back.ignored == []
    again = TransformerXL(back.config).eval()
    again.load_state_dict(back.weights)
    ids = token_ids(1, LENGTH)
    with torch.no_grad():
        assert torch.equal(again.logits(ids), model.logits(ids))


def test_weights_that_do_not_fit_the_clusters_are_refused(exported, tmp_path):
    for path in exported[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"cutoffs": [20]}))
    with pytest.raises(UserError, match=r"compare n_layer, cutoffs and div_val|asks for"):
        read_published(tmp_path)


def test_it_opens_as_a_base_model_too(exported, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModel.from_pretrained(exported[0])


RELEASE = ("transformers==4.37.2", "tokenizers==0.15.2", "huggingface_hub==0.36.2")


@pytest.fixture(scope="module")
def last_release(tmp_path_factory) -> Path:
    """Python of an environment with the last release that had the model, and this one's torch."""
    folder = tmp_path_factory.mktemp("last_release")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", *RELEASE]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"transformers 4.37.2 cannot be installed, perhaps without network: {reason}")
    own = next((folder / "lib").glob("python*/site-packages"))
    # What lies in the environment itself is found first.
    (own / "shared.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    return python


@pytest.mark.slow
def test_the_last_release_opens_it_as_its_own(last_release, tmp_path):
    kinds = ["as published", "nothing before a text", "alike clusters", "nothing tied"]
    kinds += ["norms first, shared biases", "own projections"]
    for kind in kinds:
        model, folder = ours(kind), tmp_path / "exports" / kind
        export_alone(model, LENGTH, folder / "export")
        tensors = {"ids": token_ids(1, 60)}
        with torch.no_grad():
            for half, row in zip(("first", "second"), tensors["ids"].chunk(2, 1), strict=True):
                tensors[half] = model.logits(row)
                model.recall(model.remembered())
        if not model.config.zero_memory:
            tensors["nothing"] = torch.zeros(0, 1, model.config.d_model)
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "expected.safetensors")
    script = Path(__file__).with_name("last_release.py")
    command = [last_release, "-P", script, tmp_path / "exports"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(found) == set(kinds)
    for kind, report in found.items():
        assert report["version"] == "4.37.2"
        assert report["class"] == "transformers.models.deprecated.transfo_xl.modeling_transfo_xl"
        assert (kind, report["loading"], report["generated"]) == (kind, [], 3)
        assert max(report["differences"]) < 5e-6, kind
