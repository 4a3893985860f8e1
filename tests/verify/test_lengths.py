"""Rows of a certificate: some chunks long, cheap, and such as the model and its processes take."""

from __future__ import annotations

import pytest

from lsp.verify.lengths import short_length


def always(length: int) -> bool:
    return True


@pytest.mark.parametrize(
    ("sequence_length", "multiple", "length"),
    [
        (65536, 1, 256),
        (65536, 64, 256),
        (65536, 100, 300),
        (65536, 512, 1024),
        (1024, 512, 1024),
        (512, 512, 512),
        (128, 16, 128),
        (10, 16, 10),
    ],
)
def test_some_chunks_and_never_more_than_the_run(sequence_length, multiple, length):
    assert short_length(sequence_length, multiple, always) == length


@pytest.mark.parametrize(
    ("operations", "device", "length"),
    [(1e6, "cpu", 256), (1.5e7, "cpu", 128), (1e12, "cpu", 64), (3e7, "cuda", 256)],
)
def test_as_short_as_the_model_is_large(operations, device, length):
    assert short_length(4096, 1, always, lambda _: operations, device) == length


def test_a_length_that_processes_can_share():
    assert short_length(4096, 64, lambda length: length % 384 == 0) == 384
    assert short_length(4096, 64, lambda length: length == 4096) == 4096
