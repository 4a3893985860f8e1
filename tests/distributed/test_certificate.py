"""Certificates of rows that two processes share, and of runs on two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lsp.checkpointing.store import CheckpointStore, read_state
from lsp.core.exit_codes import DONE, LEAK
from lsp.models.reformer_layers import LSHSelfAttention
from lsp.parallel.config import ParallelismConfig
from lsp.parallel.runtime import runtime
from lsp.verify.cells import Cell, certify_cells
from lsp.verify.mixing import Mixing, examine
from tests.distributed.spawn import environment, free_port, run_distributed
from tests.processes import Session
from tests.run.tiny import words, write_corpus
from tests.verify.leaky import VOCABULARY, leaky, sound, without_documents

# One for each way to share: neighbours' positions, heads, heads beside global tokens, a memory.
CELLS = [
    Cell("reformer", "local", "causal", "stored", "fp32", 2),
    Cell("reformer", "local, lsh", "causal", "reversible", "bf16", 2),
    Cell("longformer", "global tokens", "masked", "recomputed", "fp32", 2),
    Cell("transformer_xl", "relative", "causal", "recomputed", "fp32", 2),
]
LEAKS: dict[str, Any] = {
    "documents are ignored": lambda: without_documents(1),
    "the future, in values": lambda: leaky("the position after", "values"),
    "the future, in gradients": lambda: leaky("the position after", "gradients"),
}
SIDES = [{"values", "gradients"}, {"values"}, {"gradients"}]


def shared(cells: list[Cell]) -> tuple[list[Mixing], list[Mixing]]:
    """What is found of the cells, and of the leaky models."""
    with runtime(ParallelismConfig(strategy="ddp", sequence=2, device="cpu")) as place:
        certified = certify_cells(cells, place.exchange)
        leaks = []
        for make in (*LEAKS.values(), sound):
            model = make()
            model.share_rows(place.exchange)
            options = {"length": 64, "vocab_size": VOCABULARY, "exchange": place.exchange}
            leaks.append(examine(model, causal=True, quick=True, **options))
        return certified, leaks


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_distributed(shared, 2, tmp_path_factory.mktemp("shared"), CELLS)


def test_both_processes_find_the_same(found: list[Any]):
    assert found[0] == found[1]


@pytest.mark.parametrize("number", range(len(CELLS)), ids=list(map(str, CELLS)))
def test_shared_rows_hold(found: list[Any], number: int):
    certified = found[0][0][number]
    assert certified.holds, certified.problems


@pytest.mark.parametrize("number", range(len(LEAKS)), ids=LEAKS)
def test_leaks_of_shared_rows_are_found(found: list[Any], number: int):
    assert {leak.what for leak in found[0][1][number].leaks} == SIDES[number]


def test_a_sound_model_is_not_suspected(found: list[Any]):
    assert found[0][1][-1].holds


def ignore_documents() -> None:
    """Makes LSH attention leak, in this process."""
    attend = LSHSelfAttention.attend

    def ignorant(self: Any, qkv: Any, memo: Any, heads: slice) -> torch.Tensor:
        kept, memo.segment_ids = memo.segment_ids, None
        out_BLE = attend(self, qkv, memo, heads)
        memo.segment_ids = kept
        return out_BLE

    LSHSelfAttention.attend = ignorant  # type: ignore[method-assign]


def train(folder: Path, corpus: Path, name: str, before: Any = None) -> list[Session]:
    typed = words(
        folder,
        corpus,
        "parallelism=zero3",
        "parallelism.param_persistence_threshold=0",
        "parallelism.sequence=2",
        "trainer.max_steps=3",
        "verify.at_start=true",
        name=name,
    )
    port = free_port()
    sessions = [
        Session(
            ["train", *typed], folder / f"{name}-{rank}.log", before, environment(rank, 2, port)
        )
        for rank in range(2)
    ]
    for session in sessions:
        session.wait(180)
    return sessions


def test_a_sharded_run_is_certified_or_refused_by_all(tmp_path: Path):
    corpus = write_corpus(tmp_path / "corpus")
    sessions = train(tmp_path, corpus, "sound")
    assert [s.process.exitcode for s in sessions] == [DONE, DONE], sessions[0].output
    step_dir = CheckpointStore(tmp_path / "sound").latest()
    assert step_dir is not None
    certificate = read_state(step_dir)["certificate"]
    assert certificate["result"].startswith("documents apart, causal"), json.dumps(certificate)

    sessions = train(tmp_path, corpus, "leaky", ignore_documents)
    assert [s.process.exitcode for s in sessions] == [LEAK, LEAK]
    assert sessions[0].output.count("the model leaks") == 1
    assert "the model leaks" not in sessions[1].output
    assert CheckpointStore(tmp_path / "leaky").latest() is None
