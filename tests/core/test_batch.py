"""The batch and the positions of packed documents."""

import pytest
import torch

from lsp.core.batch import IGNORE_INDEX, Batch, positions_from_segments


@pytest.mark.parametrize(
    ("segments", "positions"),
    [
        pytest.param([1, 1, 1, 1], [0, 1, 2, 3], id="one-document"),
        pytest.param([1, 1, 2, 2], [0, 1, 0, 1], id="two-documents"),
        pytest.param([1, 1, 0, 0], [0, 1, 2, 3], id="padding-continues-its-document"),
        pytest.param([1, 0, 2, 2], [0, 1, 0, 1], id="padding-between-documents"),
        pytest.param([0, 0, 0, 0], [0, 1, 2, 3], id="padding-only"),
        pytest.param([1, 2, 3, 4], [0, 0, 0, 0], id="documents-of-one-token"),
    ],
)
def test_positions(segments, positions):
    assert positions_from_segments(torch.tensor([segments, segments])).tolist() == [positions] * 2


def make_batch() -> Batch:
    ids = torch.arange(12).view(3, 4)
    labels = ids.clone()
    labels[0, 1:] = IGNORE_INDEX
    segments = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 2, 2, 0]])
    return Batch(ids, labels, segments, positions_from_segments(segments))


def test_counts():
    batch = make_batch()
    assert int(batch.num_predicted) == 9
    assert int(batch.num_padding) == 3


def test_rows_are_views():
    batch = make_batch()
    part = batch.rows(1, 3)
    assert part.input_ids.tolist() == batch.input_ids[1:].tolist()
    assert part.input_ids.data_ptr() == batch.input_ids[1:].data_ptr()


def test_tensors_are_the_arguments_of_a_model():
    batch = make_batch().to(torch.device("cpu"))
    assert list(batch.tensors()) == ["input_ids", "labels", "segment_ids", "position_ids"]
