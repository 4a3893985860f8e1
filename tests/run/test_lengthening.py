"""`lsp import` of a RoBERTa as a Longformer: a run that trains, is exported, or is refused."""

import json

import pytest
import torch
import transformers

from lsp.checkpointing.store import read_state
from lsp.cli.main import main
from lsp.core.exit_codes import DONE, USER_ERROR
from lsp.run.build import run_training
from lsp.run.compose import load_train_config
from lsp.run.config import ExportConfig
from lsp.run.export import run_export
from lsp.run.load import load_run
from tests.hub.test_importing import publish
from tests.hub.tiny_roberta import POSITIONS, tiny_roberta, write_legacy, write_roberta
from tests.run.tiny import words

torch.set_num_threads(1)

LONG = 128


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "roberta"
    return folder, write_roberta(folder)


@pytest.fixture(scope="module")
def longformer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "longformer"
    config = transformers.LongformerConfig(
        **tiny_roberta().config.to_dict() | {"attention_window": [4, 8], "model_type": "longformer"}
    )
    model = transformers.LongformerForMaskedLM(config)
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def imported(tmp_path_factory, short):
    out = tmp_path_factory.mktemp("runs") / "long"
    typed = [f"from={short[0]}", "architecture=longformer", f"sequence_length={LONG}"]
    assert main(["import", *typed, "attention_window=[64,16]", f"out={out}"]) == DONE
    return out


def test_a_run_at_step_0(imported, short):
    loaded = load_run(imported)
    assert (loaded.step, read_state(loaded.step_dir)["imported_from"]) == (0, str(short[0]))
    config = loaded.config
    assert (config.sequence_length, config.objective.name) == (LONG, "masked")
    assert config.architecture.attention_window == [64, 16]
    assert config.architecture.max_position_embeddings == LONG + 2
    assert (config.architecture.layer_norm_eps, config.architecture.type_vocab_size) == (1e-5, 1)
    assert config.architecture.sep_token_id == 2


def test_the_tokenizer_is_that_of_the_roberta_for_longer_texts(imported, short):
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(f) for f in (
        imported / "tokenizer", short[0]
    ))  # fmt: skip
    assert ours("one two<mask>").input_ids == theirs("one two<mask>").input_ids
    assert (theirs.model_max_length, ours.model_max_length) == (POSITIONS, LONG)


def test_trains_on_and_is_exported(imported, corpus, tmp_path):
    overrides = [
        "objective=masked",
        "trainer.max_steps=4",
        "trainer.eval_every=4",
        "checkpoint.every=4",
        f"sequence_length={LONG}",
        "tokenizer=bytes",  # what the weights were made for wins
    ]
    before = load_run(imported).model.state_dict()
    config = load_train_config(words(imported.parent, corpus, *overrides, name=imported.name))
    assert run_training(config) == DONE
    loaded = load_run(imported)
    assert loaded.step == 4
    name = "longformer.encoder.layer.1.attention.self.query.weight"
    assert not torch.equal(loaded.model.state_dict()[name], before[name])
    out = tmp_path / "exported"
    assert run_export(ExportConfig(run=str(imported), out=str(out))) == DONE
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(out).eval()
    assert type(theirs) is transformers.LongformerForMaskedLM
    ids = torch.arange(5, 5 + LONG)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(ids).logits, loaded.model.logits(ids), rtol=1e-5, atol=1e-5
        )


def test_512_positions_around_each_token_if_nothing_is_said(short, tmp_path, capsys):
    out = tmp_path / "long"
    typed = [f"from={short[0]}", "architecture=longformer", "sequence_length=40", f"out={out}"]
    assert main(["import", *typed]) == DONE
    loaded = load_run(out)
    assert loaded.config.architecture.attention_window == 512
    parameters = sum(p.numel() for p in loaded.model.parameters())
    assert f"longformer, {parameters:,} parameters, objective=masked" in capsys.readouterr().out


def test_a_published_longformer_in_a_pickle_with_a_window_per_layer(longformer, tmp_path):
    folder, theirs = tmp_path / "in", longformer[1]
    theirs.save_pretrained(folder)
    write_legacy(folder, theirs)
    assert json.loads((folder / "config.json").read_text())["attention_window"] == [4, 8]
    out = tmp_path / "long"
    assert main(["import", f"from={folder}", "architecture=longformer", f"out={out}"]) == DONE
    loaded = load_run(out)
    assert loaded.config.architecture.attention_window == [4, 8]
    ids = torch.arange(5, 5 + POSITIONS)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model.logits(ids), theirs.eval()(ids).logits, rtol=1e-5, atol=1e-5
        )


def test_a_roberta_stays_one_if_nothing_is_said(short, tmp_path, capsys):
    out = tmp_path / "same"
    assert main(["import", f"from={short[0]}", f"out={out}"]) == DONE
    assert "architecture=hub" in capsys.readouterr().out
    loaded = load_run(out)
    assert (loaded.config.sequence_length, loaded.config.objective.name) == (POSITIONS, "masked")
    ids = torch.arange(5, 5 + POSITIONS)[None]
    theirs = transformers.RobertaForMaskedLM.from_pretrained(short[0]).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model.logits(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5
        )


TO_LONG = "architecture=longformer sequence_length=128"
REFUSED = {
    "a-reformer-is-asked-for": (
        "roberta", "sequence_length=128",
        "sequence_length=128 is for making a Longformer of a RoBERTa: add architecture=longformer,",
    ),
    "windows-of-a-reformer": (
        "reformer", "attention_window=8",
        "attention_window=8 is for making a Longformer of a RoBERTa: add architecture=longformer,",
    ),
    "no-length": (
        "roberta", "architecture=longformer attention_window=8",
        "is a roberta, which can be made into a longer Longformer: use architecture=longformer "
        "sequence_length=4096",
    ),
    "an-objective-of-its-own": (
        "longformer", "objective=causal",
        "objective=causal is for architecture=hub, but {from} is a longformer",
    ),
    "a-reformer": (
        "reformer", TO_LONG, "is a reformer: leave it out, or name a RoBERTa",
    ),
    "a-longformer": (
        "longformer", TO_LONG, "is a longformer: leave it out, or name a RoBERTa",
    ),
    "windows-of-a-longformer": (
        "longformer", "architecture=longformer attention_window=8",
        "attention_window=8 is for making a Longformer of a RoBERTa",
    ),
    "another-model": ("bert", TO_LONG, "such as FacebookAI/roberta-base, but {from} is a bert"),
    "not-longer": (
        "roberta", "architecture=longformer sequence_length=30",
        "sequence_length=30 is not longer than the 30 positions that the model has already: use "
        "more, such as 240",
    ),
    "an-odd-window": (
        "roberta", f"{TO_LONG} attention_window=7",
        "attention_window=7 has to be an even number from 2 on, or num_hidden_layers=2 of them",
    ),
    "no-window": (
        "roberta", f"{TO_LONG} attention_window=0",
        "attention_window=0 has to be an even number from 2 on",
    ),
    "too-many-windows": (
        "roberta", f"{TO_LONG} attention_window=[8,8,8]",
        "attention_window=[8, 8, 8] has to be an even number from 2 on, or num_hidden_layers=2",
    ),
    "a-window-in-words": (
        "roberta", f"{TO_LONG} attention_window=wide",
        "attention_window=wide must be a whole number, or a list of one for each layer",
    ),
    "a-length-in-words": (
        "roberta", "architecture=longformer sequence_length=long",
        "sequence_length=long must be a whole number, e.g. sequence_length=4096",
    ),
    "a-causal-roberta": (
        "causal", TO_LONG,
        "config.json: is_decoder=true: a causal RoBERTa cannot become a Longformer, whose tokens "
        "see both sides; name one that was trained with masks (RobertaForMaskedLM)",
    ),
    "relative-positions": (
        "relative", TO_LONG,
        "config.json: position_embedding_type=relative_key cannot be made longer: only absolute",
    ),
    "no-head": (
        "headless", TO_LONG,
        "the RoBERTa has no language-model head (lm_head): name a folder that RobertaForMaskedLM",
    ),
    "other-layers": (
        "shallow", TO_LONG,
        "the published folder has longformer.encoder.layer.1.attention.output.LayerNorm.bias",
    ),
    "no-positions": (
        "nowhere", TO_LONG,
        "max_position_embeddings=2 leaves no position beside the first 2, which no token has",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory, short, longformer):
    root = tmp_path_factory.mktemp("sources")
    publish(root / "reformer", "safetensors")
    tiny_roberta().roberta.save_pretrained(root / "headless")
    changes = {
        "causal": {"is_decoder": True},
        "relative": {"position_embedding_type": "relative_key"},
        "bert": {"model_type": "bert"},
        "shallow": {"num_hidden_layers": 1},
        "nowhere": {"max_position_embeddings": 2},
    }
    for name, change in changes.items():
        tiny_roberta().save_pretrained(root / name)
        file = root / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    names = ("reformer", "headless", *changes)
    return {"roberta": short[0], "longformer": longformer[0]} | {n: root / n for n in names}


@pytest.mark.parametrize(("source", "typed", "says"), REFUSED.values(), ids=REFUSED)
def test_refusals_are_told_in_a_line(sources, source, typed, says, tmp_path, capsys):
    out = tmp_path / "checkpoints" / "long"
    given = [f"from={sources[source]}", *typed.split(), f"out={out}"]
    assert main(["import", *given]) == USER_ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("lsp: ")
    assert told.err.count("\n") == 1
    assert says.format_map({"from": sources[source]}) in told.err
    assert list(tmp_path.iterdir()) == []
