"""Documents become rows: pure functions of document lengths.

A plan says which part of which document lies where in which row. Tokens never pass through here,
so planning a large corpus takes little memory, and the properties that training rests on (each
token once, no overlap, aligned starts) can be tested on lengths alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from data_pipelines.errors import DataError, unknown_choice

BUFFER_DOCUMENTS = 2**16
"""How many documents `best_fit` looks at together."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `start : start + length` of a document, at `position` in a row."""

    document: int
    start: int
    length: int
    position: int


Row = list[Piece]


def check_length(sequence_length: int, length_multiple: int) -> None:
    """Refuses a sequence length that is not a multiple of what the architecture needs.

    Raises:
        DataError: naming the nearest lengths that fit.
    """
    if sequence_length < 1 or length_multiple < 1:
        raise DataError(f"sequence_length={sequence_length}: give 1 or more")
    if sequence_length % length_multiple:
        lower = sequence_length // length_multiple * length_multiple
        fitting = [str(n) for n in (lower, lower + length_multiple) if n > 0]
        raise DataError(
            f"sequence_length={sequence_length} is not a multiple of {length_multiple}: "
            f"the nearest that fit: {' and '.join(fitting)}"
        )


def pack(
    lengths: Iterable[int], strategy: str, sequence_length: int, multiple: int = 1
) -> Iterator[Row]:
    """Plans the rows for documents of the given lengths.

    Args:
        lengths: Tokens of each document, in order; all at least 1.
        strategy: `concatenate`, `best_fit` or `one_per_row`.
        sequence_length: Tokens in a row, a multiple of `multiple`.
        multiple: Every document starts at a multiple of it (1: anywhere).

    Yields:
        For each row its pieces, by position. Positions without a piece are padding.
    """
    check_length(sequence_length, multiple)
    if strategy == "concatenate":
        return concatenate(lengths, sequence_length, multiple)
    if strategy == "best_fit":
        return best_fit(lengths, sequence_length, multiple)
    if strategy == "one_per_row":
        return one_per_row(lengths, sequence_length)
    raise unknown_choice("packing.strategy", strategy, _STRATEGIES)


_STRATEGIES = ("concatenate", "best_fit", "one_per_row")


def concatenate(lengths: Iterable[int], sequence_length: int, multiple: int = 1) -> Iterator[Row]:
    """One running stream: a document goes on in the next row where the row ends."""
    row: Row = []
    position = 0
    for document, length in enumerate(lengths):
        position = _round_up(position, multiple)
        start = 0
        while start < length:
            if position == sequence_length:
                yield row
                row, position = [], 0
            taken = min(length - start, sequence_length - position)
            row.append(Piece(document, start, taken, position))
            start += taken
            position += taken
    if row:
        yield row


def one_per_row(lengths: Iterable[int], sequence_length: int) -> Iterator[Row]:
    """Each document alone in a row; what does not fit is dropped."""
    for document, length in enumerate(lengths):
        yield [Piece(document, 0, min(length, sequence_length), 0)]


def best_fit(
    lengths: Iterable[int],
    sequence_length: int,
    multiple: int = 1,
    buffer_documents: int = BUFFER_DOCUMENTS,
) -> Iterator[Row]:
    """Best-fit-decreasing packing: a document is cut only if it is longer than a row.

    After "Fewer Truncations Improve Language Modeling" (2404.10830, section 3.1): whole rows are
    cut off long documents; what remains goes, longest first, into the row with the least space
    that is still enough. Rows come in the order of their first documents, not of their fullness.

    Args:
        lengths: Tokens of each document.
        sequence_length: Tokens in a row.
        multiple: Every document starts at a multiple of it.
        buffer_documents: Documents packed together; more pack tighter and take longer.
    """
    buffer: list[tuple[int, int]] = []
    for document, length in enumerate(lengths):
        buffer.append((document, length))
        if len(buffer) == buffer_documents:
            yield from _best_fit_buffer(buffer, sequence_length, multiple)
            buffer = []
    yield from _best_fit_buffer(buffer, sequence_length, multiple)


def _best_fit_buffer(
    documents: list[tuple[int, int]], sequence_length: int, multiple: int
) -> Iterator[Row]:
    rows: list[list[tuple[int, int, int]]] = []  # of (document, start, length)
    rest: list[tuple[int, int, int]] = []
    for document, length in documents:
        whole = length // sequence_length * sequence_length
        rows += [[(document, at, sequence_length)] for at in range(0, whole, sequence_length)]
        if length > whole:
            rest.append((document, whole, length - whole))
    rest.sort(key=lambda part: (-part[2], part[0]))

    # Rows by space left. Starts are aligned by giving each part a multiple of the alignment:
    # as a row is one too, the last part of a row loses nothing by it.
    open_rows: list[tuple[int, int]] = []
    for part in rest:
        needed = _round_up(part[2], multiple)
        found = bisect_left(open_rows, (needed, 0))
        if found < len(open_rows):
            space, number = open_rows.pop(found)
            rows[number].append(part)
        else:
            space, number = sequence_length, len(rows)
            rows.append([part])
        if space > needed:
            insort(open_rows, (space - needed, number))

    for parts in rows:
        parts.sort()
    for parts in sorted(rows):
        yield list(_place(parts, multiple))


def _place(parts: list[tuple[int, int, int]], multiple: int) -> Iterator[Piece]:
    position = 0
    for document, start, length in parts:
        yield Piece(document, start, length, position)
        position = _round_up(position + length, multiple)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
