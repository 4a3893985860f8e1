"""Runs of architectures of `transformers`: evaluated, asked to write, exported, read back."""

import json
import math

import pytest
import torch
import transformers

from lsp.cli.main import main
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE, LEAK
from lsp.run.config import EvaluateConfig, ExportConfig, GenerateConfig, ImportConfig
from lsp.run.evaluate import run_evaluate
from lsp.run.export import run_export
from lsp.run.generate import run_generate
from lsp.run.importing import run_import
from lsp.run.load import load_run
from tests.models.hub.tiny import tiny
from tests.run.small_run import make_run
from tests.run.tiny import words as train_words

RUNS = {
    "llama": "causal",
    "bert": "next_sentence",
    "t5": "span_corruption",
    "electra": "replaced_token",
    "xlnet": "permutation",
    "markuplm": "masked",
}


def words(model_type, objective):
    """What chooses a tiny model."""
    values = [f"+architecture.model_init_config.{k}={v}" for k, v in tiny(model_type).items()]
    return [
        "architecture=hub",
        f"architecture.model_type={model_type}",
        f"objective={objective}",
        *values,
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each made when it is first asked for."""
    made = {}

    def run(model_type):
        if model_type not in made:
            root = tmp_path_factory.mktemp(model_type)
            made[model_type] = make_run(root, *words(model_type, RUNS[model_type]), experiment=None)
        return made[model_type]

    return run


@pytest.mark.parametrize("model_type", ["llama", "bert", "t5", "xlnet"])
def test_evaluates(runs, model_type, tmp_path, capsys):
    config, _, _ = runs(model_type)
    out = tmp_path / "result.json"
    assert run_evaluate(EvaluateConfig(run=str(config.run_dir), rows=4, out=str(out))) == DONE
    result = json.loads(out.read_text())
    assert math.isfinite(result["loss"])
    assert (result["bits_per_byte"] is not None) is (model_type == "llama")
    assert result["by_position"]
    assert "loss" in capsys.readouterr().out


def test_a_leak_of_the_published_code_is_refused_and_explained(tmp_path, corpus, capsys):
    typed = [
        *train_words(tmp_path, corpus, "experiment=", "packing=one_per_row", "tokenizer=bytes"),
        *words("prophetnet", "future_ngram"),
        "sequence_length=64",
        "schedule.warmup_steps=2",
    ]
    typed.remove("verify.at_start=false")
    assert main(["train", *typed]) == LEAK
    said = capsys.readouterr().err
    assert "verify.at_start=false trains it all the same" in said
    assert "known of the published code: as published, its relative positions" in said
    assert "Traceback" not in said


def test_a_discriminator_predicts_no_tokens(runs, tmp_path):
    config, _, _ = runs("electra")
    with pytest.raises(UserError, match="objective=replaced_token"):
        run_evaluate(EvaluateConfig(run=str(config.run_dir), out=str(tmp_path / "result.json")))


def test_reports_of_context_are_for_those_that_continue_texts(runs, tmp_path, capsys):
    config, _, _ = runs("bert")
    out = tmp_path / "result.json"
    run_evaluate(EvaluateConfig(run=str(config.run_dir), rows=2, out=str(out), context=True))
    assert json.loads(out.read_text())["by_context"] == []
    assert "context is about predicting what comes next" in capsys.readouterr().err


def test_continues_a_prompt(runs, capsys):
    config, _, _ = runs("llama")
    told = []
    for cache in (True, False):
        words = {"prompt": "def ", "max_new_tokens": 8, "greedy": True, "cache": cache}
        assert run_generate(GenerateConfig(run=str(config.run_dir), **words)) == DONE
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert told[0].startswith("def ")


def test_answers_a_prompt(runs, capsys):
    config, _, _ = runs("t5")
    assert (
        run_generate(GenerateConfig(run=str(config.run_dir), prompt="def f", max_new_tokens=8))
        == DONE
    )
    assert not capsys.readouterr().out.startswith("def f")


def test_an_encoder_does_not_write(runs):
    config, _, _ = runs("bert")
    with pytest.raises(UserError, match="not to continue"):
        run_generate(GenerateConfig(run=str(config.run_dir), prompt="def "))


def test_export_says_what_is_left_out(runs, tmp_path, capsys):
    config, model, _ = runs("markuplm")
    out = tmp_path / "exported"
    assert run_export(ExportConfig(run=str(config.run_dir), out=str(out))) == DONE
    assert "the head that it was trained with is left out" in capsys.readouterr().out
    theirs = transformers.AutoModel.from_pretrained(out, add_pooling_layer=False).eval()
    ids = torch.arange(8, 40)[None]
    with torch.no_grad():
        expected = model.hidden_states(ids)
        assert torch.allclose(theirs(ids).last_hidden_state, expected, atol=1e-5)
    assert "add_pooling_layer=False" in (out / "README.md").read_text()


def test_out_and_in_again(runs, tmp_path):
    config, model, _ = runs("t5")
    out, back = tmp_path / "exported", tmp_path / "back"
    assert run_export(ExportConfig(run=str(config.run_dir), out=str(out))) == DONE
    imported = ImportConfig(
        source=str(out), out=str(back), architecture="hub", objective="span_corruption"
    )
    assert run_import(imported) == DONE
    loaded = load_run(back)
    weights = model.state_dict()
    assert all(torch.equal(weights[n], w) for n, w in loaded.model.state_dict().items())
