"""A model with tied weights and norms after the sums under every strategy."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.spawn import run_distributed
from tests.distributed.work import Job, Outcome, train

TIED = "longformer.embeddings.word_embeddings.weight", "lm_head.decoder.weight"


@pytest.fixture(scope="module")
def alone() -> Outcome:
    return train([Job(architecture="longformer", residual="recomputed")])[0]


@pytest.fixture(scope="module")
def alone_with_two_streams() -> Outcome:
    return train([Job(architecture="longformer, reversible", residual="stored")])[0]


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_equals_one_process(tmp_path, alone, alone_with_two_streams, strategy):
    jobs = [
        Job(strategy, architecture="longformer", residual="recomputed"),
        Job(strategy, architecture="longformer", residual="stored", accumulation=2),
        Job(strategy, architecture="longformer, reversible", accumulation=2),
    ]
    single = [alone, alone, alone_with_two_streams]
    for process in run_distributed(train, 2, tmp_path, jobs):
        for found, expected in zip(process, single, strict=True):
            assert found.losses == pytest.approx(expected.losses, rel=1e-5)
            assert torch.equal(*(found.weights[name] for name in TIED))
            for name, value in expected.weights.items():
                torch.testing.assert_close(found.weights[name], value, rtol=0, atol=1e-4)
