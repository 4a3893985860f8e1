"""Tokenizes one unit of work and stores the result so that it is whole or not there."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipelines.config import DataConfig, PackingConfig
from data_pipelines.errors import DataError
from data_pipelines.files import new_folder
from data_pipelines.readers import RawDocument, documents
from data_pipelines.sources import TRAIN, VALIDATION, Unit
from data_pipelines.text import InvalidTextError, Repairs, decode, pieces
from data_pipelines.tokenizers import Encoder, token_type

DOCUMENT = np.dtype(
    [
        ("key", "u8"),  # hash of the document's beginning
        ("tokens", "i8"),  # of this part, eos included
        ("bytes", "i8"),  # of this part, as UTF-8
        ("split", "u1"),
        ("opens", "?"),  # whether the document begins in this part
        ("closes", "?"),  # whether it ends in it
    ]
)
"""What is kept of each document, or part of one, beside its tokens."""

_WHITESPACE = np.isin(np.arange(256), list(b" \t\n\v\f\r"))

Table = np.ndarray[Any, np.dtype[np.void]]


@dataclass
class UnitStatistics:
    """What a unit had to tell besides its documents.

    Attributes:
        empty: Documents without a single token.
        skipped: Documents dropped for invalid UTF-8.
        invalid: Invalid UTF-8 sequences.
        histograms: How often each byte occurs, per split.
        words: Runs of bytes other than ASCII whitespace, per split.
    """

    empty: int = 0
    skipped: int = 0
    invalid: int = 0
    histograms: list[list[int]] = field(default_factory=lambda: [[0] * 256, [0] * 256])
    words: list[int] = field(default_factory=lambda: [0, 0])


def split_of(key: int, validation_fraction: float) -> int:
    """The split of a document: a pure function of its beginning."""
    return VALIDATION if key < validation_fraction * 2**64 else TRAIN


def key_of(head: bytes) -> int:
    """What a document is known by."""
    return int.from_bytes(hashlib.blake2b(head, digest_size=8).digest(), "big")


def encode_unit(
    unit: Unit,
    data: DataConfig,
    packing: PackingConfig,
    encoder: Encoder,
    root: Path,
    report: Callable[[int], None],
) -> None:
    """Tokenizes the documents of a unit into `root/<unit.name>/`.

    Args:
        unit: What to read.
        data: How to read it.
        packing: Whether documents end in an eos token.
        encoder: The tokenizer.
        root: Where units are stored.
        report: Is told the bytes of each piece of text that is done.

    Raises:
        DataError: if a document is malformed, or invalid under the policy `strict`.
    """
    if (root / unit.name).exists():
        return
    eos = encoder.special_ids["eos"]
    begin, end = (
        np.array(ids, token_type(encoder.vocab_size))
        for ids in (encoder.begin, [eos] if packing.append_eos else [])
    )
    statistics, repairs = UnitStatistics(), Repairs()
    histograms = np.zeros((2, 256), np.int64)
    rows: list[tuple[int, int, int, int, bool, bool]] = []
    total = 0
    with new_folder(root / unit.name) as folder, open(folder / "tokens.bin", "wb") as file:
        for document in documents(unit, data, repairs):
            key = key_of(document.head)
            split = _split(document, key, unit, data)
            start = file.tell()
            file.write(begin.data if document.opens else b"")
            try:
                content = _encode(document, data, encoder, repairs, file, report)
            except InvalidTextError as error:
                if data.encoding_errors == "strict":
                    raise DataError(
                        f"{document.origin}: {error}; data.encoding_errors=replace, ignore or "
                        "skip would go on"
                    ) from error
                file.truncate(start)
                file.seek(start)
                statistics.skipped += 1
                continue
            tokens = content.tokens
            if tokens == 0 and document.opens and document.closes:
                file.truncate(start)
                file.seek(start)
                statistics.empty += 1
                continue
            tokens += len(begin) if document.opens else 0
            # Where lines end with eos, the last one has.
            if document.closes and content.last != eos:
                file.write(end.data)
                tokens += len(end)
            histograms[split] += content.histogram
            statistics.words[split] += content.words
            rows.append((key, tokens, content.bytes, split, document.opens, document.closes))
            total += content.bytes
            if _enough(unit, len(rows), total):
                break
        statistics.invalid = repairs.count
        statistics.histograms = histograms.tolist()
        np.save(folder / "documents.npy", np.array(rows, DOCUMENT))
        (folder / "statistics.json").write_text(json.dumps(asdict(statistics)))


def load_unit(unit: Unit, root: Path) -> tuple[Table, UnitStatistics]:
    """What `encode_unit` stored, without the tokens."""
    folder = root / unit.name
    statistics = UnitStatistics(**json.loads((folder / "statistics.json").read_text()))
    return np.load(folder / "documents.npy"), statistics


def sample_unit(unit: Unit, data: DataConfig, limit: int) -> Iterator[str]:
    """About `limit` characters of the training documents of a unit, to learn a vocabulary from."""
    for document in documents(unit, data, Repairs()):
        if _split(document, key_of(document.head), unit, data) == VALIDATION:
            continue
        try:
            chunks = itertools.chain(document.chunks, document.target or ())
            for piece in pieces(decode(chunks, data.encoding_errors, Repairs()), 2**16):
                yield piece[:limit]
                limit -= len(piece)
                if limit <= 0:
                    return
        except InvalidTextError:
            continue  # told when the document is encoded


def _split(document: RawDocument, key: int, unit: Unit, data: DataConfig) -> int:
    if document.split is not None:
        return document.split
    return unit.moved.get(str(key), split_of(key, data.validation_fraction))


def _enough(unit: Unit, documents_: int, bytes_: int) -> bool:
    return (unit.max_documents is not None and documents_ >= unit.max_documents) or (
        unit.max_bytes is not None and bytes_ >= unit.max_bytes
    )


@dataclass
class _Content:
    """What a document came to; `last` is its last token."""

    tokens: int
    last: int | None
    bytes: int
    words: int
    histogram: np.ndarray[Any, np.dtype[np.int64]]


def _encode(
    document: RawDocument,
    data: DataConfig,
    encoder: Encoder,
    repairs: Repairs,
    file: IO[bytes],
    report: Callable[[int], None],
) -> _Content:
    """Writes the tokens of a document; those of a pair with eos between them.

    A pair that lacks one of the two texts has no tokens: it counts as empty.
    """
    if document.target is None:
        return _encode_text(document.chunks, data, encoder, repairs, file, report)
    start = file.tell()
    first = _encode_text(document.chunks, data, encoder, repairs, file, report)
    file.write(np.array([encoder.special_ids["eos"]], token_type(encoder.vocab_size)).data)
    second = _encode_text(document.target, data, encoder, repairs, file, report)
    if first.tokens == 0 or second.tokens == 0:
        file.truncate(start)
        file.seek(start)
        return _Content(0, None, 0, 0, np.zeros(256, np.int64))
    return _Content(
        first.tokens + 1 + second.tokens,
        second.last,
        first.bytes + second.bytes,
        first.words + second.words,
        first.histogram + second.histogram,
    )


def _encode_text(
    chunks: Iterable[bytes],
    data: DataConfig,
    encoder: Encoder,
    repairs: Repairs,
    file: IO[bytes],
    report: Callable[[int], None],
) -> _Content:
    content = _Content(0, None, 0, 0, np.zeros(256, np.int64))
    blank = True  # what is before a word that begins a piece
    for piece in pieces(decode(chunks, data.encoding_errors, repairs)):
        tokens = encoder.encode(piece)
        file.write(tokens.data)
        content.tokens += len(tokens)
        content.last = int(tokens[-1]) if len(tokens) else content.last
        raw = np.frombuffer(piece.encode(), np.uint8)
        content.histogram += np.bincount(raw, minlength=256)
        content.bytes += len(raw)
        spaces = _WHITESPACE[raw]
        content.words += int(np.count_nonzero(spaces[:-1] & ~spaces[1:]))
        content.words += int(blank and len(raw) > 0 and not spaces[0])
        blank = bool(spaces[-1]) if len(raw) else blank
        report(len(raw))
    return content
