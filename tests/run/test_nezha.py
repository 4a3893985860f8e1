"""Pairs of texts from the command line: a run that is trained, evaluated and read with a head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lsp.cli.main import main
from lsp.core.exit_codes import DONE
from lsp.run.heads import load_head
from tests.run.tiny import curve, words, write_corpus

torch.set_num_threads(1)

NEZHA = (
    "architecture=nezha",
    "architecture.max_relative_position=8",
    "architecture.hidden_size=32",
    "architecture.num_hidden_layers=2",
    "architecture.intermediate_size=48",
    "sequence_length=64",
)


def typed(root: Path, objective: str, *overrides: str) -> list[str]:
    corpus = write_corpus(root / "corpus")
    tiny = (f"objective={objective}", "tokens_per_step=256", "trainer.max_steps=4")
    return [
        "train",
        *words(root / "runs", corpus, *NEZHA, *tiny, "verify.at_start=true", *overrides),
    ]


def test_pairs_of_texts(tmp_path: Path):
    assert main(typed(tmp_path, "next_sentence")) == DONE
    run = tmp_path / "runs" / "run"
    # A loss of tokens and a loss of pairs, which at first know nothing of 262 tokens and of two.
    assert curve(run)[0]["loss"] == pytest.approx(5.57 + 0.69, abs=0.3)
    assert main(["evaluate", f"run={run}"]) == DONE
    assert "by_position" in json.loads((run / "evaluation.json").read_text())
    head = load_head(run, "sequence_classification", num_labels=3)
    assert head(torch.randint(4, 200, (2, 16))).logits.shape == (2, 3)
