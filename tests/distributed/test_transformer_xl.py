"""A model that remembers, with clusters of tokens, under every strategy."""

from __future__ import annotations

import pytest
import torch

from lsp.training.lanes import Lanes
from tests.distributed.spawn import run_distributed
from tests.distributed.work import Job, train

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


def test_equals_one_process(tmp_path, monkeypatch):
    shared = {"architecture": "transformer_xl", "last": 8}
    (alone,) = train([Job(residual="stored", **shared)])
    jobs = [Job(name, residual="recomputed", accumulation=2, **shared) for name in STRATEGIES]
    jobs.append(Job("zero3", residual="stored", dry_run=True, **shared))
    first, second = run_distributed(train, 2, tmp_path, jobs)
    assert [found.losses for found in first] == [found.losses for found in second]
    for job, found in zip(jobs, first, strict=True):
        assert found.losses == pytest.approx(alone.losses, rel=1e-5), job
        for name, value in alone.weights.items():
            torch.testing.assert_close(found.weights[name], value, rtol=0, atol=1e-4)
    assert first[3].partitioned > 0.9
    monkeypatch.setattr(Lanes, "__getitem__", lambda lanes, micro_batch: None)
    (forgetful,) = train([Job(residual="stored", **shared)])
    assert forgetful.losses[0] == alone.losses[0]
    assert forgetful.losses[1:] != pytest.approx(alone.losses[1:], rel=1e-5)
