"""`lsp export` and `lsp import`: a run goes out and comes back, bit by bit."""

import json

import pytest
import torch
import transformers

from lsp.checkpointing.store import read_state
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE
from lsp.hub.weights import read_published_weights
from lsp.run.compose import read_yaml
from lsp.run.config import ExportConfig, ImportConfig
from lsp.run.export import gather_evidence, run_export
from lsp.run.importing import run_import
from lsp.run.load import load_run
from lsp.run.resume import adopt_imported
from tests.hub.test_importing import publish
from tests.hub.tiny import tiny_config
from tests.run.small_run import make_run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    config, model, _ = make_run(root)
    return root, config, model


@pytest.fixture(scope="module")
def exported(small):
    root, config, _ = small
    out = root / "exported" / "small"
    assert run_export(ExportConfig(run=str(config.run_dir), out=str(out))) == DONE
    return out


@pytest.fixture(scope="module")
def imported(small, exported):
    out = small[0] / "checkpoints" / "back"
    assert run_import(ImportConfig(source=str(exported), out=str(out))) == DONE
    return out


def test_export_opens_in_transformers(small, exported):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    ids = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, small[2].logits(ids), atol=1e-5)


def test_card_has_the_figures_of_the_checkpoint(exported):
    card = (exported / "README.md").read_text()
    assert "| loss | 5.5 |" in card  # of step 3, not of step 6
    assert "| validation bits per byte | 7.5 |" in card
    assert "| documents | 20 |" in card
    assert "sequence_length: 64" in card


def test_evidence_without_the_prepared_data(small):
    loaded = load_run(small[1].run_dir)
    loaded.config.data.cache_root = "elsewhere"
    evidence = gather_evidence(loaded)
    assert evidence.data is None
    assert len(evidence.data_fingerprint) == 64


def test_import_is_a_run_at_step_0_with_the_same_weights(small, exported, imported):
    loaded = load_run(imported)
    state = read_state(loaded.step_dir)
    assert (loaded.step, state["imported_from"]) == (0, str(exported))
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[n], w) for n, w in small[2].state_dict().items())
    assert [path.name for path in loaded.step_dir.glob("optimizer*")] == []


def test_import_describes_the_run_in_full(small, imported):
    config = read_yaml(imported / "config.yaml")
    assert config.run_name == "back"
    assert config.run_dir == imported
    assert (config.sequence_length, config.objective.name) == (64, "causal")
    assert config.tokens_per_step % 64 == 0
    assert config.architecture == small[1].architecture
    assert (config.tokenizer.kind, config.tokenizer.name) == (
        "pretrained",
        str(imported / "tokenizer"),
    )


def test_training_goes_on_with_the_architecture_and_tokenizer(small, imported):
    from lsp.run.compose import load_train_config

    config = load_train_config(["sequence_length=64", "tokens_per_step=64"])
    adopt_imported(config, imported / "step-00000000")
    assert config.architecture == small[1].architecture
    assert config.tokenizer.name == str(imported / "tokenizer")


def test_exporting_the_import_gives_the_same_weights_and_config(small, exported, imported):
    again = small[0] / "exported" / "again"
    assert run_export(ExportConfig(run=str(imported), out=str(again), max_shard_size="100KB")) == 0
    left, right = read_published_weights(exported), read_published_weights(again)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    configs = [json.loads((out / "config.json").read_text()) for out in (exported, again)]
    assert configs[0] == configs[1]
    assert "imported from" in (again / "README.md").read_text()


def test_import_of_a_folder_made_by_transformers(tmp_path, capsys):
    theirs = publish(tmp_path / "theirs", "pickle", num_buckets=None, is_decoder=False)
    out = tmp_path / "checkpoints" / "theirs"
    assert run_import(ImportConfig(source=str(tmp_path / "theirs"), out=str(out))) == DONE
    loaded = load_run(out)
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[n], w) for n, w in theirs.state_dict().items())
    assert loaded.config.objective.name == "masked"
    assert loaded.config.architecture.num_buckets == 8  # chosen from the length, as published
    told = capsys.readouterr().out
    assert f"tokenizer: none; put its files into {out}/tokenizer" in told
    where = f"run_name=theirs checkpoint.root={out.parent} architecture=reformer"
    assert f"lsp train {where} sequence_length=64" in told
    assert "objective=masked" in told


def test_a_taken_export_is_refused_before_the_run_is_read(exported):
    with pytest.raises(UserError, match="is an earlier export: overwrite=true replaces it"):
        run_export(ExportConfig(run="no/such/run", out=str(exported)))


def test_a_taken_run_is_refused_before_anything_is_fetched(small):
    with pytest.raises(UserError, match="exists: name another folder, or delete it first"):
        run_import(ImportConfig(source="no/such", out=str(small[1].run_dir)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": "checkpoints/two words"}, "run_name='two words' must be the name of one folder"),
        ({"architecture": "longformer"}, "architecture=longformer, but .* is a reformer"),
    ],
    ids=["name", "architecture"],
)
def test_imports_that_cannot_work(exported, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    values = {"source": str(exported), "out": "checkpoints/new"} | change
    with pytest.raises(UserError, match=message):
        run_import(ImportConfig(**values))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_import_leaves_nothing(tmp_path, monkeypatch):
    publish(tmp_path / "in", "safetensors", attn_layers=["local"])
    assert tiny_config(attn_layers=["local"]).num_hidden_layers == 1

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lsp.run.importing.write_tensors", full)
    out = tmp_path / "checkpoints" / "new"
    with pytest.raises(UserError, match=r"out=.* cannot be written: No space left on device"):
        run_import(ImportConfig(source=str(tmp_path / "in"), out=str(out)))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_long_comparisons_are_announced(small, capsys, monkeypatch):
    monkeypatch.setattr("lsp.run.export.FLOAT64_FLOPS", 1.0)
    monkeypatch.setattr("lsp.run.export.export_model", lambda *args, **kwargs: pytest.fail("ran"))
    with pytest.raises(pytest.fail.Exception, match="ran"):
        run_export(ExportConfig(run=str(small[1].run_dir), out=str(small[0] / "x")))
    assert "minutes; verify_length=4096 compares fewer" in capsys.readouterr().out


def test_training_on_with_another_objective_is_refused(imported):
    from lsp.run.compose import load_train_config

    config = load_train_config(["sequence_length=64", "tokens_per_step=64", "objective=masked"])
    with pytest.raises(UserError, match=r"objective=masked does not fit.*objective=causal"):
        adopt_imported(config, imported / "step-00000000")


def test_the_checks_see_the_imported_architecture(small, imported):
    from lsp.run.build import run_training
    from lsp.run.compose import load_train_config

    # The default architecture has chunks of 64, the imported one of 16, and 64 positions.
    config = load_train_config(
        [
            "run_name=back",
            f"checkpoint.root={imported.parent}",
            "sequence_length=96",
            "tokens_per_step=96",
        ]
    )
    with pytest.raises(UserError, match=r"sequence_length=(64|96)"):
        run_training(config)


def test_a_longformer_goes_out_and_comes_back(tmp_path):
    config, model, _ = make_run(
        tmp_path,
        "architecture=longformer",
        "architecture.hidden_size=16",
        "architecture.num_hidden_layers=2",
        "architecture.num_attention_heads=2",
        "architecture.intermediate_size=24",
        "architecture.attention_window=8",
        "objective=masked",
        "tokens_per_step=256",
        "data.num_processes=1",
        experiment=None,
    )
    out, back = tmp_path / "exported", tmp_path / "checkpoints" / "back"
    assert run_export(ExportConfig(run=str(config.run_dir), out=str(out))) == DONE
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(out).eval()
    ids = torch.arange(5, 37)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model.logits(ids), atol=1e-5)
    names = read_published_weights(out).keys()
    assert "lm_head.decoder.weight" not in names  # tied: one weight, written once
    with pytest.raises(UserError, match="use architecture=longformer"):
        run_import(ImportConfig(source=str(out), out=str(back), architecture="reformer"))
    run_import(ImportConfig(source=str(out), out=str(back)))
    loaded = load_run(back)
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


BROUGHT = {
    "transformer_xl": (
        "architecture.d_model=16",
        "architecture.d_embed=16",
        "architecture.n_layer=2",
        "architecture.n_head=2",
        "architecture.d_head=8",
        "architecture.d_inner=24",
        "architecture.mem_len=64",
    ),
    "longformer": (
        "architecture.residual=reversible",
        "architecture.hidden_size=16",
        "architecture.num_hidden_layers=2",
        "architecture.num_attention_heads=2",
        "architecture.intermediate_size=24",
        "architecture.attention_window=8",
        "architecture.attention_dilation=[1,2]",
    ),
}


@pytest.mark.parametrize("architecture", BROUGHT)
def test_a_run_goes_out_with_its_code_and_comes_back(architecture, tmp_path):
    config, model, _ = make_run(
        tmp_path,
        f"architecture={architecture}",
        *BROUGHT[architecture],
        "objective=causal",
        "tokens_per_step=256",
        "data.num_processes=1",
        experiment=None,
    )
    out, back = tmp_path / "exported", tmp_path / "checkpoints" / "back"
    assert run_export(ExportConfig(run=str(config.run_dir), out=str(out))) == DONE
    assert list(out.glob("modeling_*.py"))
    run_import(ImportConfig(source=str(out), out=str(back)))
    loaded = load_run(back)
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert loaded.config.architecture == model.config
    assert (back / "tokenizer" / "tokenizer.json").is_file()
    length = {"transformer_xl": 1024, "longformer": 64}[architecture]
    assert loaded.config.sequence_length == length
