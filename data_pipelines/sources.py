"""Which files or datasets a corpus consists of, divided into units of work.

A unit is what one process tokenizes at a time and what an interruption can cost. The division
depends on the corpus and its configuration only, so it is the same after a restart.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines import hub
from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError, require
from data_pipelines.text import first_cut

SUFFIXES = {
    "text": ("",),  # in a folder given for text, every file counts
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".json"),
    "parquet": (".parquet",),
}
TRAIN, VALIDATION = 0, 1


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus; `label` is the entry of `data.paths` it was found by."""

    path: str
    label: str
    size: int
    modified_ns: int


@dataclass(frozen=True)
class Span:
    """A part of a file: bytes of text or jsonl, row groups of parquet, rows or a shard of a hub
    dataset.

    Where the span is (a part of) one document, `first` and `last` are where that document begins
    and ends, and `split` says which split it was assigned to if not by its hash.
    """

    path: str
    start: int
    stop: int
    first: int = 0
    last: int = 0
    split: int | None = None


@dataclass(frozen=True)
class Unit:
    """One unit of work.

    Attributes:
        number: Place among the units.
        label: What the manifest counts its documents under.
        spans: What to read.
        size: About how many bytes that is; 0 if not known.
        max_documents: Stop after so many documents.
        max_bytes: Stop once so many bytes of text are read.
        moved: Documents (by key) that go to another split than their hash says.
    """

    number: int
    label: str
    spans: tuple[Span, ...]
    size: int
    max_documents: int | None = None
    max_bytes: int | None = None
    moved: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of what is stored for the unit; another division of the work has other names."""
        digest = hashlib.blake2b(repr(asdict(self)).encode(), digest_size=8).hexdigest()
        return f"{self.number:06d}-{digest}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Unit:
        return Unit(**{**values, "spans": tuple(Span(**span) for span in values["spans"])})


def list_files(data: DataConfig) -> list[SourceFile]:
    """The files of the corpus in a fixed order, each once.

    Raises:
        DataError: if a path or glob matches nothing, or a file cannot be read.
    """
    if data.source == "python_library":
        found = [(path, "python_library") for path in _python_library()]
    else:
        found = [(path, label) for label in data.paths for path in _match(label, data.source)]
    files: dict[str, SourceFile] = {}
    ours = os.path.realpath(os.path.expanduser(data.cache_root)) + os.sep
    for path, label in found:
        resolved = os.path.realpath(path)
        # A folder such as `.` may hold what was prepared from it.
        if resolved in files or (resolved.startswith(ours) and path != label):
            continue
        if not os.access(path, os.R_OK):
            raise DataError(f"{path} cannot be read: check its permissions (data.paths)")
        status = os.stat(path)
        files[resolved] = SourceFile(path, label, status.st_size, status.st_mtime_ns)
    return list(files.values())


def identity(data: DataConfig) -> list[Any]:
    """What the corpus is, for the fingerprint.

    Files count by path, size and time of change; reading all of a large corpus at each start to
    hash it would cost more than preparing it again after a copy. The interpreter's library is
    known by its version, names and sizes. A Hub dataset is known by name and revision.
    """
    if data.source == "python_library":
        root = sysconfig.get_paths()["stdlib"]
        return [(os.path.relpath(file.path, root), file.size) for file in list_files(data)]
    if data.source == "hub_dataset":
        folder = Path(str(data.name))
        local = [folder] if folder.exists() else []
        paths = [str(p) for p in local] + [path for path in data.paths if "://" not in path]
        return [_stamp(path) for pattern in paths for path in _match(pattern, "text")]
    return [(os.path.realpath(f.path), f.size, f.modified_ns) for f in list_files(data)]


def plan(data: DataConfig) -> list[Unit]:
    """Divides the corpus into units of about `data.unit_bytes`.

    Raises:
        DataError: if there is nothing to read.
    """
    if data.source == "hub_dataset":
        label, drafts = str(data.name), [([Span(*s)], n) for s, n in hub.spans(data)]
        return _number([(label, spans, size) for spans, size in drafts], data)
    files = list_files(data)
    if data.source == "parquet":
        spans = [(f.label, s, n) for f in files for s, n in _row_groups(f, data)]
    elif data.source == "python_library" or (data.source, data.document) == ("text", "file"):
        spans = [(f.label, s, s.stop - s.start) for f, s in _whole_files(files, data)]
        # The limits are already met by the choice of files.
        return _number(_group(spans, data.unit_bytes), data, limits=False)
    else:
        spans = [(f.label, s, s.stop - s.start) for f in files for s in _line_spans(f, data)]
    return _number(_group(spans, data.unit_bytes), data)


def _python_library() -> Iterator[str]:
    """The `.py` files of the running interpreter's own library, sorted, without what is added."""
    root = sysconfig.get_paths()["stdlib"]
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in _NOT_LIBRARY]
        found += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    require(bool(found), f"{root} holds no .py files: choose data=text and data.paths")
    yield from sorted(found)


_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


def _match(pattern: str, source: str) -> list[str]:
    """Files that an entry of `data.paths` stands for, sorted."""
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        candidates = glob.glob(os.path.join(glob.escape(expanded), "**", "*"), recursive=True)
        candidates = [path for path in candidates if path.endswith(SUFFIXES[source])]
    elif os.path.exists(expanded):
        candidates = [expanded]
    else:
        candidates = glob.glob(expanded, recursive=True)
    found = sorted(path for path in candidates if os.path.isfile(path))
    if not found:
        raise DataError(f"data.paths: {pattern} matches no file (looked from {os.getcwd()})")
    return found


def _stamp(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return os.path.realpath(path), status.st_size, status.st_mtime_ns


def _whole_files(files: list[SourceFile], data: DataConfig) -> Iterator[tuple[SourceFile, Span]]:
    """Spans of files that are one document each; large ones are divided.

    With `shuffle_documents`, limits choose files by the hash of their name instead of taking the
    first ones: a small part of a library then is a sample of all of it.
    """
    sizes = {file.path: file.size for file in files}
    if data.max_documents or data.max_bytes:
        order = sorted(files, key=_name_hash) if data.shuffle_documents else files
        sizes, left = {}, data.max_bytes
        for file in order[: data.max_documents]:
            if left is not None and left <= 0:
                break
            sizes[file.path] = file.size if left is None else min(file.size, left)
            left = None if left is None else left - file.size
    kept = [file for file in files if file.path in sizes]
    for file in kept:
        size = sizes[file.path]
        if file.path.endswith(".gz"):
            yield file, Span(file.path, 0, file.size, 0, file.size)
            continue
        if size < file.size:
            size = max(1, _cut(file.path, size, file.size))
        if len(kept) == 1 and data.validation_fraction > 0 and size > 1:
            cut = _cut(file.path, int(size * (1 - data.validation_fraction)), size)
            yield from ((file, s) for s in _divide(file.path, 0, cut, data, TRAIN))
            yield from ((file, s) for s in _divide(file.path, cut, size, data, VALIDATION))
        else:
            yield from ((file, s) for s in _divide(file.path, 0, size, data, None))


def _name_hash(file: SourceFile) -> tuple[bytes, str]:
    name = os.path.basename(file.path).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(name, digest_size=8).digest(), file.path


def _divide(
    path: str, first: int, last: int, data: DataConfig, split: int | None
) -> Iterator[Span]:
    """The document in bytes `first:last` of a file, in parts of about `data.unit_bytes`."""
    # A document that is dropped for one bad byte must be seen whole by one process.
    step = data.unit_bytes if data.encoding_errors != "skip" else last - first
    start = first
    while start < last:
        near_end = start + step * 5 // 4 >= last
        stop = last if near_end else max(_cut(path, start + step, last), start + 1)
        yield Span(path, start, stop, first, last, split)
        start = stop
    if first == last == 0:
        yield Span(path, 0, 0)  # an empty document, to be counted


def _cut(path: str, offset: int, last: int) -> int:
    with open(path, "rb") as file:
        file.seek(offset)
        return min(last, offset + first_cut(file.read(min(2**16, last - offset))))


def _line_spans(file: SourceFile, data: DataConfig) -> Iterator[Span]:
    """Spans of a file of records; a record belongs to the span that holds its first byte."""
    divisible = data.document == "line" or data.source == "jsonl"
    step = data.unit_bytes if divisible and not file.path.endswith(".gz") else max(file.size, 1)
    for start in range(0, file.size, step):
        yield Span(file.path, start, min(file.size, start + step))


def _row_groups(file: SourceFile, data: DataConfig) -> Iterator[tuple[Span, int]]:
    """One span per row group, with the size of the text in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as parquet:
            names = parquet.schema_arrow.names
            for key, name in zip(("field", "target_field"), data.text_fields, strict=False):
                if name not in names:
                    raise DataError(
                        f"{file.path} has no column '{name}' (data.{key}): "
                        f"it has {', '.join(names)}"
                    )
                kind = parquet.schema_arrow.field(name).type
                if not hub.is_text(kind):
                    raise DataError(f"{file.path}: column '{name}' is {kind}, not text")
            for number in range(parquet.metadata.num_row_groups):
                group = parquet.metadata.row_group(number)
                columns = (group.column(c) for c in range(group.num_columns))
                size = sum(
                    c.total_uncompressed_size
                    for c in columns
                    if c.path_in_schema in data.text_fields
                )
                yield Span(file.path, number, number + 1), size
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.path} is not a parquet file: {error}") from error


def _group(
    spans: list[tuple[str, Span, int]], unit_bytes: int
) -> list[tuple[str, list[Span], int]]:
    """Collects small neighbouring spans of the same label into units."""
    groups: list[tuple[str, list[Span], int]] = []
    for label, span, size in spans:
        if groups and groups[-1][0] == label and groups[-1][2] + size <= unit_bytes:
            groups[-1][1].append(span)
            groups[-1] = (label, groups[-1][1], groups[-1][2] + size)
        else:
            groups.append((label, [span], size))
    return groups


def _number(
    drafts: list[tuple[str, list[Span], int]], data: DataConfig, limits: bool = True
) -> list[Unit]:
    documents, size = (data.max_documents, data.max_bytes) if limits else (None, None)
    return [
        Unit(number, label, tuple(spans), bytes_, documents, size)
        for number, (label, spans, bytes_) in enumerate(drafts)
    ]
