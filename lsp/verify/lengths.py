"""How long the rows of a certificate are."""

from __future__ import annotations

from collections.abc import Callable

TARGETS = (256, 128, 64)
"""What is tried, the longest first: some chunks or windows, and little to compute."""
PASSES = 25
"""Forward passes that a quick certificate takes the time of."""
OPERATIONS = {"cpu": 2e10, "cuda": 2e13}
"""What a quick certificate may compute: a fraction of a second."""


def short_length(
    sequence_length: int,
    multiple: int,
    fits: Callable[[int], bool],
    operations_per_token: Callable[[int], float] = lambda _: 0.0,
    device_type: str = "cpu",
) -> int:
    """The length of rows that cross borders of chunks and still cost little.

    Args:
        sequence_length: Of the training, which always fits.
        multiple: What lengths have to be a multiple of.
        fits: Whether processes can share rows of a length.
        operations_per_token: Of a training step at a length.
        device_type: `cpu` or `cuda`.

    Returns:
        The first of `TARGETS`, made to fit, that a quick certificate has the time for, or the
        shortest; at most `sequence_length`.
    """
    possible = []
    for target in TARGETS:
        steps = max(2, -(-target // multiple))
        lengths = range(steps * multiple, sequence_length, multiple)
        length = next((length for length in lengths if fits(length)), sequence_length)
        forward = operations_per_token(length) / 3 * length
        if PASSES * forward <= OPERATIONS[device_type]:
            return length
        possible.append(length)
    return min(possible)
