"""Axial and learned positions."""

import pytest
import torch

from lsp.models.layers.positions import AxialPositions, LearnedPositions
from tests.models.largest_tensor import LargestTensor


def _axial(dropout: float = 0.0) -> AxialPositions:
    torch.manual_seed(0)
    axial = AxialPositions([4, 6], [3, 5], dropout)
    for table in axial.parameters():
        torch.nn.init.normal_(table)
    return axial


def test_a_position_is_its_row_and_its_column():
    axial = _axial()
    out = axial(torch.arange(24)[None])
    for position in range(24):
        row, column = divmod(position, 6)
        want = torch.cat([axial.weights.get_parameter("0")[row, 0],
                          axial.weights.get_parameter("1")[0, column]])  # fmt: skip
        assert torch.equal(out[0, position], want)


def test_names_and_shapes_are_those_of_the_published_weights():
    shapes = {name: tuple(p.shape) for name, p in _axial().named_parameters()}
    assert shapes == {"weights.0": (4, 1, 3), "weights.1": (1, 6, 5)}


def test_positions_of_any_token_in_any_order():
    axial = _axial()
    whole = axial(torch.arange(24)[None])[0]
    ids = torch.tensor([[0, 1, 0, 1, 2], [23, 0, 7, 7, 3]])
    assert torch.equal(axial(ids), whole[ids])


def test_the_table_of_all_positions_never_exists():
    axial = AxialPositions([100, 100], [4, 4], 0.1)
    with LargestTensor() as recorded:
        axial(torch.arange(10)[None], seed=0).sum().backward()
    assert recorded.largest <= 400


def test_dropout_drops_a_column_of_the_grid_in_one_row_of_the_batch():
    axial = _axial(dropout=0.5)
    ids = torch.arange(24).expand(3, 24)
    plain, dropped = axial(ids), axial(ids, seed=1)
    ratio = (dropped / plain).reshape(3, 4, 6, 8)
    assert set(ratio.unique().tolist()) == {0.0, 2.0}
    columns = ratio[:, 0, :, 0]
    assert torch.equal(ratio, columns[:, None, :, None].expand_as(ratio))
    assert len({tuple(row) for row in columns.tolist()}) > 1
    assert torch.equal(dropped, axial(ids, seed=1))


def test_three_axes():
    axial = AxialPositions([2, 3, 4], [1, 1, 1], 0.0)
    for table in axial.parameters():
        table.data = torch.arange(table.numel(), dtype=torch.float32).view_as(table)
    out = axial(torch.arange(24)[None])[0]
    assert torch.equal(out @ torch.tensor([12.0, 4.0, 1.0]), torch.arange(24.0))


def test_learned_positions_are_looked_up():
    learned = LearnedPositions(10, 4, 0.5)
    ids = torch.tensor([[0, 9, 3]])
    assert torch.equal(learned(ids), learned.embedding.weight[ids])
    assert torch.equal(learned(ids, seed=1), learned(ids, seed=1))
    assert not torch.equal(learned(ids, seed=1), learned(ids, seed=2))


@pytest.mark.parametrize("learned", [4, 6, 12, 18])
def test_longer_rows_begin_with_the_positions_of_shorter_ones(learned: int):
    torch.manual_seed(0)
    table, axial = LearnedPositions(24, 8, 0.0), _axial()
    for positions in (table, axial):
        before = positions(torch.arange(24)[None])[0]
        positions.repeat(learned)
        after = positions(torch.arange(24)[None])[0]
        assert torch.equal(after[:learned], before[:learned])
        # On a grid of columns of 6, what four positions know of their row and column is repeated.
        again = learned if positions is table or learned % 6 == 0 else 6
        assert torch.equal(after[again:], after[torch.arange(24 - again) % again])
