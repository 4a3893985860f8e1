"""From a trained run to a classifier that `transformers` opens."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import transformers

from lsp.cli.main import main
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE
from lsp.run.heads import load_head, save_head
from lsp.run.load import load_run
from tests.run.small_run import make_run

torch.set_num_threads(1)
LONGFORMER = ("architecture=longformer", "objective=masked", "architecture.attention_window=16")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tiny = ["architecture.hidden_size=32", "architecture.num_attention_heads=2"]
    tiny += ["architecture.num_hidden_layers=2", "architecture.intermediate_size=48"]
    return {
        "reformer": make_run(folder / "reformer"),
        "longformer": make_run(folder / "longformer", *LONGFORMER, *tiny, experiment=None),
    }


@pytest.mark.parametrize("architecture", ["reformer", "longformer"])
def test_fine_tuning_a_run(architecture: str, runs, tmp_path):
    config, pretrained, _ = runs[architecture]
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.run_dir / "tokenizer")
    both_ways = {"is_decoder": False} if architecture == "reformer" else {}
    model = load_head(config.run_dir, "sequence_classification", num_labels=3, **both_ways)
    body = {f"backbone.{name}": weight for name, weight in pretrained.state_dict().items()}
    ours = model.state_dict()
    assert all(torch.equal(ours[name], body[name]) for name in ours if name in body)
    assert {name.split(".")[0] for name in model.fresh} == {"classifier"}

    texts = ["def f(x):", "return x + 1\n", "import torch as t"]
    batch = tokenizer(texts, return_tensors="pt", padding="max_length", max_length=64)
    labels = torch.tensor([0, 1, 2])
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]

    save_head(model.eval(), tmp_path / "tuned", tokenizer)

    auto = transformers.AutoModelForSequenceClassification
    theirs = auto.from_pretrained(tmp_path / "tuned")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "tuned")
    short = again(texts[0], return_tensors="pt")
    with torch.no_grad():
        expected, got = theirs(**short).logits, model(**short).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_head_of_a_run_is_loaded(runs):
    config, pretrained, _ = runs["longformer"]
    model = load_head(config.run_dir, "masked_lm")
    assert model.fresh == ()
    ids = torch.randint(5, 20, (1, 16))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, pretrained.logits(ids))


def test_a_causal_run_can_be_made_to_look_both_ways(runs):
    config, _, _ = runs["reformer"]
    model = load_head(config.run_dir, "question_answering", is_decoder=False)
    assert not model.config.is_decoder
    with pytest.raises(UserError, match="is_decoder=true does not fit masked_lm"):
        load_head(config.run_dir, "masked_lm")
    with pytest.raises(UserError, match="is no folder"):
        load_head("./nowhere", "masked_lm")


def test_a_causal_classifier_is_warned_about(runs):
    config, _, _ = runs["reformer"]
    with pytest.warns(UserWarning, match="use is_decoder=False"):
        load_head(config.run_dir, "sequence_classification")


def test_a_tuned_model_is_imported_to_be_trained_further(runs, tmp_path, capsys):
    config, pretrained, _ = runs["longformer"]
    model = load_head(config.run_dir, "token_classification", num_labels=5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.run_dir / "tokenizer")
    save_head(model, tmp_path / "tuned", tokenizer)
    typed = ["import", f"from={tmp_path / 'tuned'}", "architecture=longformer"]
    assert main([*typed, f"out={tmp_path / 'runs' / 'again'}"]) == DONE
    assert "without a language model's head, so these are fresh: lm_head" in capsys.readouterr().out
    again = load_run(tmp_path / "runs" / "again")
    assert again.config.objective.name == "masked"
    for name, weight in again.model.state_dict().items():
        if name.startswith("longformer.") or name == "lm_head.decoder.weight":  # tied
            assert torch.equal(weight, pretrained.state_dict()[name]), name


TRAINER = """
import torch, transformers
from lsp.run.heads import load_head
torch.set_num_threads(1)
model = load_head({run!r}, {task!r}).train()
given = {{"input_ids": torch.arange(5, 21), "attention_mask": torch.ones(16).long()}}
rows = [given | {labels!r}] * 8
arguments = transformers.TrainingArguments(
    {out!r}, max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to=[],
    save_strategy="no",
)
trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
trainer.train()
assert trainer.evaluate()["eval_loss"] > 0
"""
LABELS = {
    "sequence_classification": {"labels": 1},
    "question_answering": {"start_positions": 3, "end_positions": 5},
}


@pytest.mark.slow
@pytest.mark.parametrize("task", LABELS)
def test_the_trainer_of_transformers_trains_them(task: str, runs, tmp_path):
    """In a process of its own: it sets up accelerate for all of one."""
    config, _, _ = runs["reformer"]
    script = TRAINER.format(
        run=str(config.run_dir), task=task, labels=LABELS[task], out=str(tmp_path)
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
