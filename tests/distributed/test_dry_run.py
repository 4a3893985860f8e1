"""A dry run leaves no trace: the same bits with it and without it, under every strategy."""

from dataclasses import replace

import pytest
import torch

from tests.distributed.spawn import run_distributed
from tests.distributed.work import Job, Outcome, train

STEPS = 4

JOBS = [
    Job(strategy, accumulation, residual, precision, last=STEPS, dropout=0.1)
    for strategy, accumulation, residual, precision in (
        ("ddp", 1, "reversible", "fp32"),
        ("ddp", 2, "stored", "bf16"),
        ("zero1", 1, "reversible", "fp32"),
        ("zero2", 2, "stored", "fp32"),
        ("zero2", 1, "reversible", "bf16"),
        ("zero3", 2, "reversible", "fp32"),
        ("zero3", 1, "stored", "bf16"),
    )
]


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert found.losses == expected.losses
    assert found.norms == expected.norms
    assert all(found.applied)
    for ours, theirs in ((found.weights, expected.weights), (found.optimizer, expected.optimizer)):
        assert ours.keys() == theirs.keys()
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_two_processes(tmp_path):
    pairs = [replace(job, dry_run=dry) for job in JOBS for dry in (False, True)]
    for outcomes in run_distributed(train, 2, tmp_path, pairs):
        for without, after in zip(outcomes[::2], outcomes[1::2], strict=True):
            assert_same(after, without)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_alone(accumulation):
    job = Job("single", accumulation, last=STEPS, dropout=0.1)
    without, after = train([job, replace(job, dry_run=True)])
    assert_same(after, without)
