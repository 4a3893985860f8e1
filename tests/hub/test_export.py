"""Export or fail: what is exported opens in plain `transformers`; what is not leaves nothing."""

import json
import shutil

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from lsp.core.errors import UserError
from lsp.hub import comparison, export
from lsp.hub.comparison import ExportMismatchError
from lsp.hub.export import export_model
from lsp.hub.published import config_from_published, form_of
from lsp.hub.weights import read_published_weights
from lsp.models.reformer import Reformer
from tests.hub.tiny import LENGTH, tiny_evidence, tiny_model, write_byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes") / "tokenizer")


def run_export(model, tokenizer_path, out, **options):
    return export_model(
        model,
        build=Reformer,
        sequence_length=LENGTH,
        tokenizer_path=tokenizer_path,
        out=out,
        evidence=options.pop("evidence", tiny_evidence()),
        **options,
    )


def pretend(monkeypatch, **changes):
    """Replaces the fresh process by a report that finds nothing wrong, but for `changes`."""

    def report(scratch, task):
        found = {"complaints": [], "differences": {case["name"]: 0.0 for case in task["cases"]}}
        versions = {"torch": "1", "transformers": "2"}
        return found | {"versions": versions, "seconds": 1.0} | changes

    monkeypatch.setattr(comparison, "_reload", report)


@pytest.fixture(scope="module")
def exported(tokenizer_path, tmp_path_factory):
    """A causal model in shards, compared by a real fresh process."""
    out = tmp_path_factory.mktemp("exports") / "nested" / "causal"
    model = tiny_model()
    found = run_export(model, tokenizer_path, out, max_shard_size=20_000)
    return out, model, found


def test_folder_is_whole(exported, tokenizer_path):
    out, _, _ = exported
    own = {path.name for path in tokenizer_path.iterdir()} - {"encoding.json"}
    names = {path.name for path in out.iterdir()}
    shards = {name for name in names if name.startswith("model-0")}
    assert len(shards) > 1
    assert {"tokenizer.json", "tokenizer_config.json"} <= own
    assert names - shards - own == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "verification.json",
    }
    assert [path.name for path in out.parent.iterdir()] == ["causal"]


def test_comparison_reaches_the_training_length(exported):
    _, _, found = exported
    assert [(case.length, case.dtype) for case in found.cases] == [(16, "float32"), (64, "float64")]
    assert found.cases[0].difference < 1e-5
    assert found.cases[1].difference < 1e-12
    assert (found.weights, found.texts, found.generated) == (30, 5, 4)


def test_transformers_opens_it_and_goes_on_from_a_prompt(exported):
    out, model, _ = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(theirs).__name__ == "ReformerModelWithLMHead"
    assert theirs.config.hash_seed is None
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model.logits(ids), atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    prompt = tokenizer("def ", return_tensors="pt").input_ids
    assert theirs.generate(prompt, max_new_tokens=8, min_new_tokens=8).shape == (1, 12)
    for text in ("a <eos> b", "naïve\n\t日本"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_weights_come_back_bit_equal(exported):
    out, model, _ = exported
    config, _ = config_from_published(json.loads((out / "config.json").read_text()))
    assert config == model.config
    form = form_of(config)
    back = form.from_published(read_published_weights(out), config)
    assert all(torch.equal(back[name], w) for name, w in model.state_dict().items())


def test_card_holds_the_evidence(exported):
    card = (exported[0] / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    for text in (
        "# tiny",
        "trained with `lsp` for 7 steps (448 tokens)",
        "| validation bits per byte | 2.5 |",
        "All 30 tensors are bit-equal",
        "| whole length | 64 | 64 | float64 |",
        "AutoModelForCausalLM.from_pretrained",
        "run_name: tiny",
        "| torch | 1.2.3 |",
    ):
        assert text in card


def test_half_precision_masked_model_without_axial_positions(tokenizer_path, tmp_path):
    changes = {"is_decoder": False, "axial_pos_embds": False, "lsh_num_chunks_after": 1}
    out = tmp_path / "masked"
    run_export(tiny_model(**changes), tokenizer_path, out, dtype="bf16")
    weights = load_file(out / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    # What transformers computes with: its Reformer cannot compute in bf16.
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(out)
    assert type(theirs).__name__ == "ReformerForMaskedLM"
    assert not (out / "generation_config.json").exists()


def corrupt_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["reformer.encoder.layers.1.attention.output.dense.weight"][3, 3] += 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_corrupted_weight_fails_the_export_and_leaves_nothing(
    tokenizer_path, tmp_path, monkeypatch
):
    write = export.write_weights

    def write_and_corrupt(weights, folder, size):
        write(weights, folder, size)
        corrupt_weights(folder)

    monkeypatch.setattr(export, "write_weights", write_and_corrupt)
    with pytest.raises(
        ExportMismatchError,
        match=r"layers\.1\.attention\.output\.dense\.weight is not the trained one",
    ):
        run_export(tiny_model(), tokenizer_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_and_a_missing_weight_are_told(tokenizer_path, tmp_path, monkeypatch):
    copy = export.copy_tokenizer

    def copy_and_change(source, folder):
        copy(source, folder)
        file = folder / "tokenizer.json"
        file.write_text(file.read_text().replace('"a":', '"\u3042":', 1))
        weights = load_file(folder / "model.safetensors")
        del weights["lm_head.decoder.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(export, "copy_tokenizer", copy_and_change)
    with pytest.raises(ExportMismatchError, match=r"missing_keys: lm_head.*and \d more"):
        run_export(tiny_model(), tokenizer_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_code_of_a_tokenizer_is_left_behind(tokenizer_path, tmp_path):
    source, out = tmp_path / "tokenizer", tmp_path / "out"
    shutil.copytree(tokenizer_path, source)
    out.mkdir()
    file = source / "tokenizer_config.json"
    named = {"auto_map": {"AutoTokenizer": ["somebody/else--own.Tokenizer", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    (source / "modeling_transfo_xl.py").touch()
    export.copy_tokenizer(source, out)
    assert not list(out.glob("*.py"))
    expected = json.loads((tokenizer_path / file.name).read_text())
    assert json.loads((out / file.name).read_text()) == expected


def test_logits_that_differ_fail_the_export(tokenizer_path, tmp_path, monkeypatch):
    pretend(monkeypatch, differences={"short": 0.0, "whole length": 0.01})
    with pytest.raises(ExportMismatchError, match=r"differ from the trained one's by 0\.01 at.*64"):
        run_export(tiny_model(), tokenizer_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_says_what_helps(tokenizer_path, tmp_path, monkeypatch):
    class Killed:
        returncode, stderr = -9, ""

    monkeypatch.setattr(comparison.subprocess, "run", lambda *args, **kwargs: Killed)
    with pytest.raises(ExportMismatchError, match=r"ended by signal 9.*verify_length=4096"):
        run_export(tiny_model(), tokenizer_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_tokenizer_can_be_exported(tmp_path, monkeypatch):
    pretend(monkeypatch)
    run_export(tiny_model(), None, tmp_path / "out")
    assert "This model has no tokenizer." in (tmp_path / "out" / "README.md").read_text()


def test_an_earlier_export_is_replaced_when_asked(tokenizer_path, tmp_path, monkeypatch):
    pretend(monkeypatch)
    out = tmp_path / "out"
    out.mkdir()  # empty: as good as none
    run_export(tiny_model(), tokenizer_path, out)
    (out / "stray.txt").touch()
    with pytest.raises(UserError, match=r"exists and is an earlier export: overwrite=true"):
        run_export(tiny_model(), tokenizer_path, out)
    run_export(tiny_model(), tokenizer_path, out, overwrite=True)
    assert not (out / "stray.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_export_is_never_replaced(tokenizer_path, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="exists and is not an export: name another folder"):
            run_export(tiny_model(), tokenizer_path, out, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_failed_replacement_keeps_the_earlier_export(tokenizer_path, tmp_path, monkeypatch):
    out = tmp_path / "out"
    pretend(monkeypatch)
    run_export(tiny_model(), tokenizer_path, out)
    pretend(monkeypatch, differences={"short": 1.0, "whole length": 1.0})
    with pytest.raises(ExportMismatchError):
        run_export(tiny_model(), tokenizer_path, out, overwrite=True)
    assert (out / "config.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verify_length": 65}, "verify_length=65 must be 1 to 64"),
        ({"dtype": "fp8"}, "dtype=fp8 is not known"),
    ],
    ids=["longer than training", "unknown format"],
)
def test_options_that_cannot_work(tokenizer_path, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run_export(tiny_model(), tokenizer_path, tmp_path / "out", **options)


def test_diverged_weights_are_refused(tokenizer_path, tmp_path):
    model = tiny_model()
    model.lm_head.decoder.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"lm_head\.decoder\.weight has values that are not finite"):
        run_export(model, tokenizer_path, tmp_path / "out")


def test_a_full_disk_is_one_line(tokenizer_path, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_weights", full)
    with pytest.raises(UserError, match=r"out=.*cannot be written: No space left on device"):
        run_export(tiny_model(), tokenizer_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_tokenizer_folder_is_refused(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match="has no tokenizer files"):
        run_export(tiny_model(), tmp_path / "tokenizer", tmp_path / "out")


def test_what_a_killed_export_left_is_cleared(tokenizer_path, tmp_path, monkeypatch):
    pretend(monkeypatch)
    left = tmp_path / ".out.exporting"
    shutil.copytree(tokenizer_path, left)
    run_export(tiny_model(), tokenizer_path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "encoding.json").exists()
