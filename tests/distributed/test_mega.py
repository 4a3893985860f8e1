"""A model whose layers mix positions twice, under every strategy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.distributed.spawn import run_distributed
from tests.distributed.work import Job, train

TIED = "mega.embedding_layer.word_embeddings.weight", "lm_head.decoder.weight"
MEGA = Job(architecture="mega", residual="stored", last=8)
"""With this learning rate the rounding errors of two processes grow tenfold in the next ten steps,
and so do those of one that accumulates."""
JOBS = [
    replace(MEGA, strategy="ddp", residual="recomputed"),
    replace(MEGA, strategy="zero2", accumulation=2),
    replace(MEGA, strategy="zero3", residual="recomputed", accumulation=2),
    replace(MEGA, strategy="zero3"),
]


def test_equals_one_process(tmp_path):
    (expected,) = train([MEGA])
    for process in run_distributed(train, 2, tmp_path, JOBS):
        for job, found in zip(JOBS, process, strict=True):
            assert found.losses == pytest.approx(expected.losses, rel=1e-5), job
            assert torch.equal(*(found.weights[name] for name in TIED))
            for name, value in expected.weights.items():
                torch.testing.assert_close(found.weights[name], value, rtol=0, atol=1e-4)
