"""`lsp evaluate`: figures that agree with the model's own loss."""

import json
import math

import pytest
import torch

from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE
from lsp.data.batches import BatchMaker, EvaluationBatches, Share
from lsp.run.config import EvaluateConfig
from lsp.run.evaluate import measure, run_evaluate
from lsp.run.load import load_run
from lsp.run.parts import bytes_per_token, vocabulary_of
from lsp.run.reports import REPORTS as REPORTS_BY_KEY
from tests.run.small_run import make_run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"))


def plain_loss(config, model, prepared, split):
    """Loss sum, count and right guesses, one row at a time, from all logits."""
    maker = BatchMaker(
        prepared.split(split), config.objective, vocabulary_of(prepared), config.seed
    )
    batches = EvaluationBatches(maker, Share(0, 1, 1, 1))
    loss_sum, count, correct = 0.0, 0, 0
    for index in range(len(batches)):
        batch = batches[index]
        with torch.no_grad():
            logits = model.logits(batch.input_ids, batch.segment_ids, batch.position_ids)
        predicted = batch.labels != -100
        logits, labels = logits[predicted], batch.labels[predicted]
        loss_sum += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return loss_sum, count, correct


@pytest.mark.parametrize("split", ["validation", "train"])
def test_figures_are_those_of_the_plain_loss(small, split):
    config, model, prepared = small
    loss_sum, count, correct = plain_loss(config, model, prepared, split)
    result = measure(load_run(config.run_dir), split)
    assert (result["tokens"], result["step"], result["split"]) == (count, 3, split)
    assert result["loss"] == pytest.approx(loss_sum / count, rel=1e-5)
    assert result["accuracy"] == correct / count
    assert result["perplexity"] == pytest.approx(math.exp(loss_sum / count), rel=1e-4)
    assert result["bits_per_byte"] == pytest.approx(
        loss_sum / count / math.log(2) / bytes_per_token(prepared, split), rel=1e-5
    )


def test_characters_and_words_of_the_text(tmp_path):
    config, _, prepared = make_run(tmp_path)
    counts = prepared.manifest["splits"]["validation"]
    result = measure(load_run(config.run_dir), "validation")
    nats = result["loss"] * counts["tokens"]
    # The corpus is ASCII.
    assert result["bits_per_character"] == pytest.approx(result["bits_per_byte"])
    assert math.log(result["word_perplexity"]) == pytest.approx(nats / counts["words"])
    assert counts["bytes"] > 4 * counts["words"] > 0


def test_words_that_are_not_known_are_told(small, tmp_path, capsys):
    """They are cheap to predict, and their bytes count: the figures would look better."""
    config, _, prepared = make_run(tmp_path, "tokenizer=word", "tokenizer.vocab_size=60")
    unknown = prepared.manifest["tokenizer"]["special_ids"]["unk"]
    maker = BatchMaker(
        prepared.split("validation"), config.objective, vocabulary_of(prepared), config.seed
    )
    batches = EvaluationBatches(maker, Share(0, 1, 1, 1))
    labels = torch.cat([batches[index].labels[0] for index in range(len(batches))])
    result = measure(load_run(config.run_dir), "validation")
    share = float((labels == unknown).sum()) / result["tokens"]
    assert result["unknown"] == pytest.approx(share)
    assert share > 0
    assert f"lsp: {share:.1%} of the tokens stand for words that are not" in capsys.readouterr().err
    assert measure(load_run(small[0].run_dir), "validation")["unknown"] == 0
    assert "not in the vocabulary" not in capsys.readouterr().err


def test_positions_add_up(small, monkeypatch):
    monkeypatch.setattr("lsp.evaluation.position.FIRST_BUCKET", 8)
    monkeypatch.setattr("lsp.models.interface.SCORES_AT_ONCE", 260 * 100)
    config, _, _ = small
    result = measure(load_run(config.run_dir), "validation")
    rows = result["by_position"]
    assert [(row["from"], row["to"]) for row in rows] == [(0, 7), (8, 15), (16, 31), (32, 63)]
    assert sum(row["tokens"] for row in rows) == result["tokens"]
    for key in ("loss", "accuracy", "bits_per_byte"):
        mean = sum(row[key] * row["tokens"] for row in rows) / result["tokens"]
        assert mean == pytest.approx(result[key])


def test_fewer_rows_and_a_file(small, tmp_path, capsys):
    config, _, _ = small
    out = tmp_path / "deep" / "result.json"
    assert run_evaluate(EvaluateConfig(run=str(config.run_dir), rows=2, out=str(out))) == DONE
    assert json.loads(out.read_text())["rows"] == 2
    told = capsys.readouterr().out
    assert f"written to {out}" in told.replace("\n", "")
    assert "bits per byte" in told


def test_the_file_is_in_the_folder_of_the_run(small):
    config, _, _ = small
    run_evaluate(EvaluateConfig(run=str(config.run_dir), rows=1))
    assert json.loads((config.run_dir / "evaluation.json").read_text())["split"] == "validation"


def test_masked_models_have_no_bits_per_byte(tmp_path, capsys):
    config, _, _ = make_run(tmp_path, "objective=masked")
    assert run_evaluate(EvaluateConfig(run=str(config.run_dir))) == DONE
    result = json.loads((config.run_dir / "evaluation.json").read_text())
    assert result["bits_per_byte"] is None
    assert all(row["bits_per_byte"] is None for row in result["by_position"])
    assert "bits per byte" not in capsys.readouterr().out


REPORTS = {"context_shortest": 8, "report_rows": 4, "passkey": True, "sliding": True}


def evaluated(config, capsys, **options):
    """The result, and what was told on both channels."""
    assert run_evaluate(EvaluateConfig(run=str(config.run_dir), **options)) == DONE
    return json.loads((config.run_dir / "evaluation.json").read_text()), capsys.readouterr()


def test_every_report_of_a_causal_model(tmp_path, capsys):
    config, _, _ = make_run(tmp_path, "packing=concatenate", "sequence_length=256")
    asked = {"passkey_samples": 1, "passkey_depths": 2, "passkey_distractors": 1}
    result, told = evaluated(config, capsys, **REPORTS, **asked)
    assert [row["context"] for row in result["by_context"]] == [8, 16, 32, 64, 128, 256]
    assert len({row["tokens"] for row in result["by_context"]}) == 1
    # No row is as long as a document: the longest context is the loss by rows, all but.
    assert result["by_context"][-1]["loss"] == pytest.approx(result["loss"], rel=0.05)
    assert [(row["length"], row["depth"]) for row in result["passkey"]] == [(256, 0), (256, 1)]
    assert [row["stride"] for row in result["sliding"]] == [128, 64, 32]
    pictures = sorted(path.name for path in config.run_dir.glob("*.png"))
    named = ("by_context", "by_position", "passkey", "sliding")
    assert pictures == [f"evaluation_{name}.png" for name in named]
    for words in ("by context length", "pass keys named", "sliding over whole", "by position"):
        assert words in told.out
    assert "lsp:" not in told.err


XL = ["architecture=transformer_xl", "architecture.d_model=16", "architecture.d_embed=16"]
XL += ["architecture.n_layer=1", "architecture.d_inner=16", "tokens_per_step=128"]


@pytest.mark.parametrize(
    ("memory", "contexts", "sliding"),
    [(96, [64, 128, 256], ("memory", [48, 96, 192, 384])), (0, [64], ("stride", [32, 16, 8]))],
    ids=["a memory", "none"],
)
def test_reports_of_a_transformer_xl(tmp_path, capsys, memory, contexts, sliding):
    words = [*XL, f"architecture.mem_len={memory}"]
    config, _, _ = make_run(tmp_path, *words, experiment=None)
    options = {"sliding": True, "report_rows": 8, "rows": 4, "plots": False}
    result, _ = evaluated(config, capsys, **options)
    assert [row["context"] for row in result["by_context"]] == contexts
    assert [row[sliding[0]] for row in result["sliding"]] == sliding[1]


def test_contexts_of_an_odd_length(tmp_path, capsys):
    """They are halved, whatever the length of the rows."""
    words = [*XL, "architecture.mem_len=0", "sequence_length=67", "tokens_per_step=134"]
    config, _, _ = make_run(tmp_path, *words, experiment=None)
    result, told = evaluated(config, capsys, report_rows=8, rows=4, plots=False)
    assert [row["context"] for row in result["by_context"]] == [66]
    assert "context:" not in told.err


def test_what_a_masked_model_is_not_asked(tmp_path, capsys):
    config, _, _ = make_run(tmp_path, "objective=masked")
    result, told = evaluated(config, capsys, **REPORTS, plots=False)
    assert (result["by_context"], result["passkey"], result["sliding"]) == ([], [], [])
    for name in ("context", "passkey", "sliding"):
        assert f"lsp: {name} is about predicting what comes next" in told.err


def test_reports_that_have_nothing_to_measure_are_left_out(tmp_path, capsys):
    # Rows hold whole documents, and few tokens.
    config, _, _ = make_run(tmp_path, "packing=one_per_row")
    result, told = evaluated(config, capsys, **REPORTS, context_longest=32, plots=False)
    assert (result["passkey"], result["sliding"]) == ([], [])
    assert len(result["by_context"]) == 3
    assert "passkey: the question takes 170 tokens, and the model reads 64" in told.err
    assert "sliding: no document read is longer than a row" in told.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_longest": 128}, "context_longest=128: the model has positions for 64 tokens"),
        ({"passkey": True, "passkey_lengths": [96]}, "passkey_lengths=96: the model has positions"),
        ({"passkey": True, "passkey_lengths": [32]}, r"passkey_lengths=\[32\]: a text with"),
        ({"sliding": True, "sliding_strides": [64]}, r"sliding_strides=\[64\]: each has to be be"),
        ({"sliding": True, "sliding_memories": [9]}, r"sliding_memories=\[9\] is for a model with"),
        ({"sliding": True, "clamp_len": 9}, "clamp_len=9 is for a model with a memory"),
        ({"passkey": True, "passkey_distractors": 999}, "passkey_distractors=999: the vocabulary"),
    ],
    ids=["context", "too long", "too short", "stride", "memories", "clamp", "distractors"],
)
def test_reports_that_cannot_be_made(small, options, message):
    config, _, _ = small
    with pytest.raises(UserError, match=message):
        run_evaluate(EvaluateConfig(run=str(config.run_dir), rows=1, **options))


def test_what_was_found_is_kept_when_the_rest_is_interrupted(small, monkeypatch):
    def interrupted(subject, config):
        yield {"length": 64}
        raise KeyboardInterrupt

    config, _, _ = small
    monkeypatch.setitem(REPORTS_BY_KEY, "passkey", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_evaluate(EvaluateConfig(run=str(config.run_dir), rows=1, report_rows=1))
    result = json.loads((config.run_dir / "evaluation.json").read_text())
    assert result["passkey"] == [{"length": 64}]
    assert result["by_context"]


def test_changed_data_is_told(tmp_path, capsys):
    config, _, _ = make_run(tmp_path)
    for file in (tmp_path / "corpus").iterdir():
        file.write_text(file.read_text() + "\nand more\n")
    measure(load_run(config.run_dir), "validation")
    assert "the data is not what the run was trained on" in capsys.readouterr().err


def test_an_empty_split(tmp_path):
    config, _, _ = make_run(tmp_path, "data.validation_fraction=0")
    with pytest.raises(UserError, match="split=validation has no rows: evaluate the other one"):
        measure(load_run(config.run_dir), "validation")


def test_a_result_that_cannot_be_written(small, tmp_path):
    config, _, _ = small
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "x.json")
    with pytest.raises(UserError, match=r"out=.*x\.json cannot be written"):
        run_evaluate(EvaluateConfig(run=str(config.run_dir), rows=1, out=out))
