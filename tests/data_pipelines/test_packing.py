from __future__ import annotations

import random
import time

import pytest

from data_pipelines.errors import DataError
from data_pipelines.packing import Row, best_fit, check_length, pack

LENGTH = 64
STRATEGIES = ("concatenate", "best_fit", "one_per_row")


def lengths_of(kind: str, seed: int) -> list[int]:
    generator = random.Random(seed)
    return {
        "none": [],
        "one": [1],
        "exact": [LENGTH] * 5,
        "short": [generator.randint(1, 20) for _ in range(300)],
        "mixed": [generator.randint(1, 200) for _ in range(300)],
        "long": [generator.randint(500, 2000) for _ in range(10)],
    }[kind]


def check_layout(rows: list[Row], multiple: int) -> None:
    """No piece outside its row, none over another, each aligned where a document starts."""
    for row in rows:
        assert row
        end = 0
        for piece in row:
            assert piece.length > 0
            assert piece.position >= end
            assert piece.position % multiple == 0
            end = piece.position + piece.length
        assert end <= LENGTH


@pytest.mark.parametrize("multiple", [1, 8, 64], ids=lambda m: f"multiple_{m}")
@pytest.mark.parametrize("kind", ["none", "one", "exact", "short", "mixed", "long"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_token_once(strategy: str, kind: str, multiple: int) -> None:
    lengths = lengths_of(kind, seed=multiple)
    rows = list(pack(lengths, strategy, LENGTH, multiple))
    check_layout(rows, multiple)
    pieces: dict[int, list[tuple[int, int]]] = {document: [] for document in range(len(lengths))}
    for row in rows:
        for piece in row:
            pieces[piece.document].append((piece.start, piece.length))
    for document, length in enumerate(lengths):
        at = 0
        for start, size in sorted(pieces[document]):
            assert start == at
            at += size
        assert at == (min(length, LENGTH) if strategy == "one_per_row" else length)
    assert rows == list(pack(iter(lengths), strategy, LENGTH, multiple))


def test_concatenate_is_one_stream_without_gaps() -> None:
    lengths = lengths_of("mixed", seed=1)
    rows = list(pack(lengths, "concatenate", LENGTH))
    order = [(p.document, p.start) for row in rows for p in row]
    assert order == sorted(order)
    assert all(sum(piece.length for piece in row) == LENGTH for row in rows[:-1])
    assert len(rows) == -(-sum(lengths) // LENGTH)


def test_best_fit_keeps_documents_whole_where_they_fit() -> None:
    lengths = lengths_of("mixed", seed=2)
    rows = list(pack(lengths, "best_fit", LENGTH))
    pieces = [piece for row in rows for piece in row]
    for document, length in enumerate(lengths):
        assert sum(p.document == document for p in pieces) == -(-length // LENGTH)


def test_best_fit_packs_tightly_and_in_source_order() -> None:
    lengths = lengths_of("short", seed=3)
    rows = list(pack(lengths, "best_fit", LENGTH))
    assert len(rows) <= -(-sum(lengths) // LENGTH) + 1
    firsts = [row[0].document for row in rows]
    assert firsts == sorted(firsts)


def test_best_fit_buffers_are_independent() -> None:
    lengths = lengths_of("short", seed=4)
    rows = list(best_fit(lengths, LENGTH, buffer_documents=50))
    for row in rows:
        assert len({piece.document // 50 for piece in row}) == 1


def test_best_fit_takes_a_hundred_thousand_documents_in_seconds() -> None:
    generator = random.Random(5)
    lengths = [generator.randint(1, 9000) for _ in range(100_000)]
    begun = time.process_time()
    rows = list(pack(lengths, "best_fit", 8192))
    assert time.process_time() - begun < 10
    assert sum(lengths) / (len(rows) * 8192) > 0.99


@pytest.mark.parametrize(
    ("length", "multiple", "nearest"),
    [(100, 64, "64 and 128"), (63, 64, "64"), (4097, 128, "4096 and 4224")],
)
def test_a_length_that_does_not_fit_is_refused(length: int, multiple: int, nearest: str) -> None:
    message = f"sequence_length={length} is not a multiple of {multiple}.*: {nearest}$"
    with pytest.raises(DataError, match=message):
        check_length(length, multiple)


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(DataError, match=r"packing.strategy=bestfit .*did you mean 'best_fit'"):
        pack([1], "bestfit", 8)
