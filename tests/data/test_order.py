"""The global order of samples."""

import pytest

from lsp.core.errors import UserError
from lsp.data.order import ContiguousOrder, SampleOrder


def test_every_row_once_in_each_epoch():
    order = SampleOrder(17, seed=3)
    epochs = [[order.row(17 * epoch + i) for i in range(17)] for epoch in range(3)]
    assert all(sorted(rows) == list(range(17)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_pure_function_of_seed_and_sample():
    order = SampleOrder(17, seed=3)
    forward = [order.row(n) for n in range(60)]
    other = SampleOrder(17, seed=3)
    assert [other.row(n) for n in reversed(range(60))] == forward[::-1]
    assert [SampleOrder(17, seed=3).row(40)] == [forward[40]]
    assert [SampleOrder(17, seed=4).row(n) for n in range(60)] != forward


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="num_rows=0"):
        SampleOrder(0, seed=0)


def test_lanes_read_on_where_they_were():
    order = ContiguousOrder(14, lanes=4)
    steps = [[order.row(4 * step + lane) for lane in range(4)] for step in range(6)]
    assert steps[:3] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert steps[3:] == steps[:3]  # the next epoch
    assert [order.goes_on(4 * step) for step in range(6)] == [False, True, True] * 2


def test_a_lane_has_a_row():
    assert ContiguousOrder(4, lanes=4).steps == 1
    with pytest.raises(UserError, match=r"a step has 4 rows.*the data has 3 rows"):
        ContiguousOrder(3, lanes=4)
