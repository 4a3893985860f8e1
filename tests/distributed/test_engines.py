"""Every strategy on two processes gives the run of one process."""

from __future__ import annotations

import math

import pytest
import torch

from tests.distributed.spawn import run_distributed
from tests.distributed.work import Job, Outcome, train

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
OFFLOADED = ("zero2_offload", "zero3_offload")


@pytest.fixture(scope="module")
def alone() -> dict[Job, Outcome]:
    jobs = [Job(), Job(last=8), Job(last=7, poisoned=(3, 4)), Job(last=6, precision="bf16")]
    jobs.append(Job(last=0))
    return dict(zip(jobs, train(jobs), strict=True))


def assert_close(found: Outcome, expected: Outcome, losses: float, weights: float) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=losses)
    assert found.weights.keys() == expected.weights.keys()
    for name, value in expected.weights.items():
        torch.testing.assert_close(found.weights[name], value, rtol=0, atol=weights)


def jobs_of(strategy: str) -> list[Job]:
    residual = "stored" if strategy == "ddp" or strategy.startswith("zero3") else "recomputed"
    return [
        Job(strategy),
        Job(strategy, accumulation=2, residual=residual, last=8),
        Job(strategy, last=7, poisoned=(3, 4)),
        Job(strategy, precision="bf16", last=6),
        Job(strategy, precision="bf16", last=0),
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equals_one_process(tmp_path, alone, strategy):
    first, second = run_distributed(train, 2, tmp_path, jobs_of(strategy))
    assert_same_on_both(first, second)
    assert_equals_one_process(strategy, first, alone)


def assert_same_on_both(first: list[Outcome], second: list[Outcome]) -> None:
    for ours, theirs in zip(first, second, strict=True):
        assert ours.losses == theirs.losses
        assert all(torch.equal(ours.weights[n], v) for n, v in theirs.weights.items())


def assert_equals_one_process(
    strategy: str, outcomes: list[Outcome], alone: dict[Job, Outcome]
) -> None:
    whole, accumulated, poisoned, bf16, untrained = outcomes

    assert_close(whole, alone[Job()], losses=1e-5, weights=1e-4)
    assert whole.norms == pytest.approx(alone[Job()].norms, rel=1e-4)
    assert whole.optimizer.keys() == alone[Job()].optimizer.keys()
    assert_close(accumulated, alone[Job(last=8)], losses=1e-5, weights=1e-4)
    # With a threshold of 0, ZeRO-3 leaves no weight whole, however small the model.
    assert (whole.partitioned > 0.9) == strategy.startswith("zero3")

    # A loss that is not finite on one process is skipped by all, and nothing changes.
    reference = alone[Job(last=7, poisoned=(3, 4))]
    assert poisoned.applied == reference.applied == [True] * 3 + [False] * 2 + [True] * 2
    assert not any(math.isfinite(norm) for norm in poisoned.norms[3:5])
    assert_close(poisoned, reference, losses=1e-5, weights=1e-4)

    assert bf16.losses == pytest.approx(alone[Job(last=6, precision="bf16")].losses, rel=2e-3)
    # The masters are the first weights themselves, not what bf16 made of them.
    fresh = alone[Job(last=0)].weights
    assert all(torch.equal(untrained.weights[name], value) for name, value in fresh.items())
    trained = {key.rpartition("/")[0] for key in whole.optimizer}
    moved = [float((whole.weights[name] - fresh[name]).abs().max()) for name in trained]
    assert min(moved) > 0.01  # equal, above, does not mean that nothing happened


def test_checkpoint_moves_between_strategies_and_numbers_of_processes(tmp_path):
    """One process → ZeRO-3 on two → ZeRO-2 or DDP on two, ZeRO-3 again, or one process."""
    alone, sharded = str(tmp_path / "alone"), str(tmp_path / "sharded")
    whole, _ = train([Job(last=11), Job(last=5, save=alone)])
    jobs = [
        Job("zero3", first=5, last=8, load=alone, save=sharded),
        Job("zero3", first=5, last=11, load=alone),
        Job("zero3", first=8, last=11, load=sharded),
        Job("zero2", first=8, last=11, load=sharded),
        Job("zero1", first=8, last=11, load=sharded, precision="bf16"),
        Job("ddp", first=8, last=11, load=sharded),
    ]
    _, unbroken, again, zero2, bf16, ddp = run_distributed(train, 2, tmp_path / "two", jobs)[0]
    (one,) = train([Job(first=8, last=11, load=sharded)])
    for outcome in (again, zero2, ddp, one):
        assert outcome.losses == pytest.approx(whole.losses[8:], rel=1e-5)
        assert outcome.optimizer.keys() == whole.optimizer.keys()
        for name, value in whole.weights.items():
            torch.testing.assert_close(outcome.weights[name], value, rtol=0, atol=1e-4)
    assert bf16.losses == pytest.approx(whole.losses[8:], rel=2e-3)
    # At the same number of processes and the same stage nothing is lost at all.
    assert again.losses == unbroken.losses[3:]
    assert all(torch.equal(again.weights[n], v) for n, v in unbroken.weights.items())
    assert all(torch.equal(again.optimizer[n], v) for n, v in unbroken.optimizer.items())


def test_offloaded(tmp_path, alone):
    """Equal to one process; resumed, bit for bit the unbroken run; others go on with it."""
    saved = {name: str(tmp_path / name) for name in OFFLOADED}
    jobs = [job for name in OFFLOADED for job in jobs_of(name)]
    for name, folder in saved.items():
        jobs.append(Job(name, last=5, save=folder))
        jobs += [Job(name, last=8), Job(name, first=5, last=8, load=folder)]
    jobs.append(Job("zero3_offload", first=5, last=8, load=saved["zero2_offload"]))
    jobs.append(Job("zero1", first=5, last=8, load=saved["zero3_offload"]))
    first, second = run_distributed(train, 2, tmp_path / "two", jobs)
    assert_same_on_both(first, second)
    assert_equals_one_process("zero2_offload", first[:5], alone)
    assert_equals_one_process("zero3_offload", first[5:10], alone)

    for unbroken, again in (first[11:13], first[14:16]):
        assert again.losses == unbroken.losses[5:]
        assert all(torch.equal(again.weights[n], v) for n, v in unbroken.weights.items())
        assert all(torch.equal(again.optimizer[n], v) for n, v in unbroken.optimizer.items())
    moved = first[16:] + train([Job(first=5, last=8, load=saved["zero2_offload"])])
    whole = alone[Job(last=8)]
    for outcome in moved:
        assert outcome.losses == pytest.approx(whole.losses[5:], rel=1e-5)
        assert outcome.optimizer.keys() == whole.optimizer.keys()
        for name, value in whole.weights.items():
            torch.testing.assert_close(outcome.weights[name], value, rtol=0, atol=1e-4)
