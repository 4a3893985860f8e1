"""Reads the documents of a unit of work, as raw bytes and never more than a piece at a time.

Records (a line, a paragraph, a field of a row) are held whole; a file that is one document is not.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from data_pipelines import hub
from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError
from data_pipelines.sources import Span, Unit
from data_pipelines.text import InvalidTextError, Repairs, decode

CHUNK_BYTES = 2**20
HEAD_BYTES = 2**16
"""A document is known by its first 64 KiB: enough to tell texts apart, little enough to read
again for each part of a divided file."""


@dataclass
class RawDocument:
    """A document or the part of one that belongs to a unit.

    Attributes:
        origin: Where it is from, for messages.
        head: The first `HEAD_BYTES` of the document.
        chunks: Its bytes (only this part's).
        target: Those of its second text, where documents are pairs.
        opens: Whether the document begins in this part.
        closes: Whether it ends in it.
        split: The split it was assigned to if not by its hash.
    """

    origin: str
    head: bytes
    chunks: Iterable[bytes]
    opens: bool = True
    closes: bool = True
    split: int | None = None
    target: list[bytes] | None = None


def documents(unit: Unit, data: DataConfig, repairs: Repairs) -> Iterator[RawDocument]:
    """The documents of a unit in the order of the source; empty ones too.

    Raises:
        DataError: if a record is malformed or lacks the field, or a file cannot be read.
    """
    for span in unit.spans:
        with _explain(span.path):
            if data.source == "hub_dataset":
                for origin, texts in hub.texts(data, span.start, span.stop):
                    yield _record(origin, texts)
            elif data.source == "parquet":
                yield from _parquet(span, data)
            elif data.source == "jsonl":
                yield from _jsonl(span, data, repairs)
            elif data.source == "python_library" or data.document == "file":
                yield _file(span)
            elif data.document == "line":
                for offset, line in _lines(span):
                    yield _known(f"{span.path}, byte {offset}", line.rstrip(b"\r\n"))
            else:
                yield from _paragraphs(span)


@contextlib.contextmanager
def _explain(path: str) -> Iterator[None]:
    """Tells the user which file could not be read, and why."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _known(origin: str, text: bytes, target: bytes | None = None) -> RawDocument:
    document = RawDocument(origin, text[:HEAD_BYTES], [text] if text else [])
    document.target = None if target is None else [target]
    return document


def _record(origin: str, texts: Sequence[str | None]) -> RawDocument:
    # JSON can spell half of a surrogate pair, which no UTF-8 can: it is left to the policy.
    return _known(origin, *((text or "").encode("utf-8", "surrogatepass") for text in texts))


def _open(path: str) -> IO[bytes]:
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _file(span: Span) -> RawDocument:
    with _open(span.path) as file:
        file.seek(span.first)
        limit = HEAD_BYTES if span.path.endswith(".gz") else span.last - span.first
        head = file.read(min(HEAD_BYTES, limit))
    return RawDocument(
        span.path,
        head,
        _file_chunks(span),
        span.start == span.first,
        span.stop == span.last,
        span.split,
    )


def _file_chunks(span: Span) -> Iterator[bytes]:
    with _explain(span.path), _open(span.path) as file:
        if span.path.endswith(".gz"):
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
            return
        file.seek(span.start)
        left = span.stop - span.start
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise DataError(f"{span.path} became shorter while it was read: prepare again")
            left -= len(chunk)
            yield chunk


def _lines(span: Span) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that begin inside the span."""
    with _open(span.path) as file:
        compressed = span.path.endswith(".gz")  # then the span is the whole file
        position = 0
        if span.start:
            # From one byte before, so that a line that begins exactly at `start` is not lost.
            file.seek(span.start - 1)
            position = span.start - 1 + len(file.readline())
        while compressed or position < span.stop:
            line = file.readline()
            if not line:
                return
            yield position, line
            position += len(line)


def _paragraphs(span: Span) -> Iterator[RawDocument]:
    begin, lines = 0, list[bytes]()
    for offset, line in _lines(span):
        if line.strip():
            begin = begin if lines else offset
            lines.append(line)
        elif lines:
            yield _known(f"{span.path}, byte {begin}", b"".join(lines).rstrip(b"\r\n"))
            lines = []
    if lines:
        yield _known(f"{span.path}, byte {begin}", b"".join(lines).rstrip(b"\r\n"))


def _jsonl(span: Span, data: DataConfig, repairs: Repairs) -> Iterator[RawDocument]:
    for offset, line in _lines(span):
        if not line.strip():
            continue
        try:
            met = Repairs()
            text = "".join(decode([line], data.encoding_errors, met))
            repairs.count += met.count
            record = json.loads(text.removeprefix("\ufeff"))
        except InvalidTextError:
            # Passed on as it is: whoever reads the document applies the policy, and counts.
            yield _known(_where(span.path, offset), line)
            continue
        except ValueError as error:
            raise DataError(f"{_where(span.path, offset)} is not JSON: {error}") from error
        except RecursionError as error:
            raise DataError(f"{_where(span.path, offset)} is nested too deeply") from error
        named = zip(("field", "target_field"), data.text_fields, strict=False)
        texts = [_field(record, span.path, offset, key, name) for key, name in named]
        yield _record(f"{span.path}, byte {offset}", texts)


def _field(record: Any, path: str, offset: int, key: str, name: str) -> str | None:
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise DataError(f"{_where(path, offset)} is a {kind}, not an object with field '{name}'")
    if name not in record:
        available = ", ".join(record) or "none"
        raise DataError(
            f"{_where(path, offset)} has no field '{name}' (data.{key}): it has {available}"
        )
    text = record[name]
    if text is not None and not isinstance(text, str):
        kind = type(text).__name__
        raise DataError(f"{_where(path, offset)}: field '{name}' is {kind}, not text")
    return text


def _where(path: str, offset: int) -> str:
    """`file:line` of a byte. Lines are only counted here, where something is wrong."""
    number, left = 1, offset
    with _open(path) as file:
        while left and (chunk := file.read(min(CHUNK_BYTES, left))):
            number += chunk.count(b"\n")
            left -= len(chunk)
    return f"{path}:{number}"


def _parquet(span: Span, data: DataConfig) -> Iterator[RawDocument]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(span.path) as parquet:
            groups = list(range(span.start, span.stop))
            row = 0
            fields = list(data.text_fields)
            for batch in parquet.iter_batches(64, columns=fields, row_groups=groups):
                # As bytes: Arrow does not check that what a file calls text is UTF-8.
                columns = (batch.column(f).cast(pa.large_binary()).to_pylist() for f in fields)
                for values in zip(*columns, strict=True):
                    where = f"{span.path}, row group {span.start}, row {row}"
                    yield _known(where, *(value or b"" for value in values))
                    row += 1
    except pa.ArrowException as error:
        raise DataError(f"{span.path} cannot be read: {error}") from error
