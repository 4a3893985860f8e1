"""Strategies for many processes, run on one without a launcher."""

import os

import pytest
import torch

from lsp.core.exit_codes import DONE
from lsp.parallel.config import ParallelismConfig
from lsp.parallel.runtime import runtime
from tests.distributed.spawn import run_distributed
from tests.distributed.tied import tied
from tests.processes import Session
from tests.run.tiny import curve, words, write_corpus


@pytest.mark.parametrize("strategy", ["ddp", "zero3", "zero2_offload"])
def test_a_group_of_one(tmp_path, strategy):
    corpus = write_corpus(tmp_path / "corpus")
    runs = {}
    for name in ("single", strategy):
        typed = words(tmp_path, corpus, f"parallelism={name}", "trainer.max_steps=5", name=name)
        session = Session(["train", *typed], tmp_path / f"{name}.log")
        assert session.wait() == DONE, session.output
        runs[name] = [row["loss"] for row in curve(tmp_path / name)]
    assert runs[strategy] == pytest.approx(runs["single"], rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "zero3_offload"])
def test_tied_weights_keep_both_names(tmp_path, strategy):
    (weights,) = run_distributed(tied, 1, tmp_path, strategy)
    assert weights.keys() == {"embedding.weight", "head.weight", "scale"}
    assert torch.equal(weights["embedding.weight"], weights["head.weight"])


def test_nothing_is_left_in_the_environment():
    """accelerate would take it for that of a launcher, in the next run of this process."""
    before = dict(os.environ)
    with runtime(ParallelismConfig(strategy="ddp", device="cpu")) as place:
        assert place.world_size == 1
    assert dict(os.environ) == before
