"""The learning rate over the steps of a run."""

from itertools import pairwise

import pytest

from lsp.training.config import SCHEDULES, ScheduleConfig
from lsp.training.schedule import learning_rate_fraction

STEPS = 40


def curve(**values) -> list[float]:
    config = ScheduleConfig(**{"warmup_steps": 10, "final_fraction": 0.1} | values)
    return [learning_rate_fraction(step, config, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_is_linear_and_begins_above_zero(name):
    assert curve(name=name)[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_falls_from_the_peak_to_the_floor(name):
    fractions = curve(name=name)
    assert fractions[10] == 1.0
    assert fractions[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(fractions[10:]))


def test_cosine_is_half_way_in_the_middle():
    assert curve(name="cosine", warmup_steps=0)[:1] == [1.0]
    config = ScheduleConfig(name="cosine", warmup_steps=0, final_fraction=0.0)
    assert learning_rate_fraction(20, config, 41) == pytest.approx(0.5)


def test_constant_stays():
    assert set(curve(name="constant")[10:]) == {1.0}


@pytest.mark.parametrize("decay", [1, 2, 8, 30])
def test_stable_then_decay_takes_that_many_steps(decay):
    fractions = curve(name="warmup_stable_decay", decay_steps=decay)
    stable = STEPS - decay
    assert set(fractions[10:stable]) <= {1.0}
    assert fractions[stable:] == pytest.approx([1 - 0.9 * (n + 1) / decay for n in range(decay)])
    assert fractions[-1] == pytest.approx(0.1)


def test_stable_then_decay_takes_a_tenth_by_itself():
    fractions = curve(name="warmup_stable_decay")
    assert fractions[35] == 1.0
    assert fractions[36] < 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_of_one_step(name):
    config = ScheduleConfig(name=name, warmup_steps=0)
    assert 0 < learning_rate_fraction(0, config, 1) <= 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_beyond_the_end_keep_the_last_rate(name):
    config = ScheduleConfig(name=name, warmup_steps=2)
    last = learning_rate_fraction(STEPS - 1, config, STEPS)
    assert learning_rate_fraction(STEPS + 100, config, STEPS) == pytest.approx(last)
