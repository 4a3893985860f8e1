"""A small form of `benchmarks/strategies.py`: the curve does not depend on who does the work."""

from __future__ import annotations

import pytest

from benchmarks.strategies import BOUND, Curve, Job, compare, reference

STEPS = 4


@pytest.fixture(scope="module")
def alone() -> Curve:
    return reference(STEPS)


@pytest.mark.parametrize(
    ("mesh", "jobs"),
    [
        ("2x1", [Job("zero1", "reversible", 1, STEPS), Job("zero3", "reversible", 2, STEPS)]),
        ("1x2", [Job("ddp", "stored", 1, STEPS), Job("zero3_offload", "reversible", 2, STEPS)]),
        ("2x2", [Job("zero3", "reversible", 2, STEPS)]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_curve_of_one_process(alone, mesh, jobs):
    assert alone.losses[-1] < alone.losses[0]
    for row in compare(mesh, jobs, alone):
        assert row["loss"] < BOUND, row
        assert row["weights"] < BOUND, row
