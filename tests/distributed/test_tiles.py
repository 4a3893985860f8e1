"""Tiles and groups of heads under sharding: every gradient is reduced once, and is the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsp.core.exit_codes import DONE
from lsp.run.build import run_training
from lsp.run.compose import load_train_config
from tests.distributed.test_train import SHARDED, assert_close_run, launch
from tests.run.tiny import words, write_corpus

# Each step of a layer, the feed-forward layer and the head fall into several pieces.
OPTIONS = [
    "trainer.max_steps=6",
    "trainer.eval_every=6",
    "checkpoint.every=6",
    "memory.tile_megabytes=0.002",
    "memory.attention_groups=2",
    "memory.head_tiles=3",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("shared") / "corpus")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    root = tmp_path_factory.mktemp("alone")
    assert run_training(load_train_config(words(root, corpus, *OPTIONS))) == DONE
    return root / "run"


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        "zero3",
        "zero2_offload",
        pytest.param("zero3_offload", marks=pytest.mark.slow),
        "auto",
    ],
)
def test_pieces_under_sharding(tmp_path, corpus, alone, strategy):
    typed = words(tmp_path, corpus, *OPTIONS, f"parallelism={strategy}", SHARDED)
    sessions = launch(tmp_path, typed)
    assert [session.wait(120) for session in sessions] == [DONE, DONE], sessions[0].output
    assert_close_run(tmp_path / "run", alone)
    chose = [session.output.count("auto chose ddp for") for session in sessions]
    assert chose == ([1, 0] if strategy == "auto" else [0, 0])
