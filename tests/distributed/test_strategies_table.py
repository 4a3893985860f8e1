"""A small form of `benchmarks/strategies.py`: the curve does not depend on who does the work."""

from __future__ import annotations

import pytest

from benchmarks.strategies import BOUND, CONFIGS, LEANEST, Curve, Job, compare, reference

STEPS = 4
OTHERS = ("longformer", "transformer_xl")


@pytest.fixture(scope="module")
def alone() -> dict[str, Curve]:
    return {name: reference(STEPS, name) for name in CONFIGS}


def jobs_of(architecture: str, *jobs: tuple[str, int]) -> list[Job]:
    return [
        Job(strategy, LEANEST[architecture], accumulation, STEPS, architecture)
        for strategy, accumulation in jobs
    ]


@pytest.mark.parametrize(
    ("mesh", "jobs"),
    [
        ("2x1", jobs_of("reformer", ("zero1", 1), ("zero3", 2))),
        ("1x2", [Job("ddp", "stored", 1, STEPS), *jobs_of("reformer", ("zero3_offload", 2))]),
        ("2x2", [job for name in CONFIGS for job in jobs_of(name, ("zero3", 2))]),
        pytest.param(
            "2x1",
            [job for name in OTHERS for job in jobs_of(name, ("ddp", 2), ("zero3_offload", 1))],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "1x2",
            [job for name in OTHERS for job in jobs_of(name, ("zero2", 2), ("zero3", 1))],
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else v[-1].architecture,
)
def test_the_curve_of_one_process(alone, mesh, jobs):
    for curve in alone.values():
        assert curve.losses[-1] < curve.losses[0]
    for row in compare(mesh, jobs, alone):
        assert row["loss"] < BOUND, row
        assert row["weights"] < BOUND, row
