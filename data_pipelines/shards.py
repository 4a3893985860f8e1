"""Packed rows on disk: Arrow files that `datasets.load_from_disk` reads too.

A row holds `input_ids`, always `sequence_length` of them in the smallest unsigned integer that
holds the vocabulary, and `starts` and `lengths` of its documents; from these two short lists the
`segment_ids` follow. Every file but the last has the same number of rows, and every record batch
in it, so a row is found by two divisions.

Beside the rows, `offsets.bin` says of each where in its document the first token stands: 0 where
the document begins there, more where it goes on from an earlier row.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.corpus import Corpus, Integers
from data_pipelines.files import checksum, write_json
from data_pipelines.manifest import FileManifest, Manifest
from data_pipelines.packing import Row

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 2**20
OFFSETS = "offsets.bin"
_OFFSET = np.dtype("<i8")
_OPEN_FILES = 256

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Layout:
    """The shape of packed rows on disk."""

    sequence_length: int
    token_type: np.dtype[Any]
    pad: int
    rows_per_batch: int
    rows_per_file: int

    @staticmethod
    def of(
        sequence_length: int, token_type: np.dtype[Any], pad: int, shard_megabytes: int
    ) -> Layout:
        """Batches of about 1 MiB, files of about `shard_megabytes`."""
        row_bytes = sequence_length * token_type.itemsize
        batch = max(1, BATCH_BYTES // row_bytes)
        batches = max(1, shard_megabytes * 2**20 // (batch * row_bytes))
        return Layout(sequence_length, token_type, pad, batch, batch * batches)


@dataclass
class Packed:
    """What packing did to each document of a split, in packing order."""

    rows: int
    pieces: Integers
    tokens: Integers


def write_split(
    rows: Iterator[Row],
    corpus: Corpus,
    order: Integers,
    layout: Layout,
    folder: Path,
    report: Callable[[int], None],
) -> tuple[Packed, list[FileManifest]]:
    """Writes the rows of a split; files that are already there are kept.

    Args:
        rows: The plan; document numbers in it are places in `order`.
        corpus: Where tokens are copied from.
        order: Documents of the split.
        layout: Shape of the rows.
        folder: Where files go; each appears under its name only when it is complete.
        report: Is told the rows as they are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packed = Packed(0, np.zeros(len(order), np.int64), np.zeros(len(order), np.int64))
    files: list[FileManifest] = []
    offsets = array("q")
    schema = _schema(layout)
    # Also an empty split gets one file: what is there can be opened.
    while (plan := list(itertools.islice(rows, layout.rows_per_file))) or not files:
        for piece in itertools.chain.from_iterable(plan):
            packed.pieces[piece.document] += 1
            packed.tokens[piece.document] += piece.length
        path = folder / f"data-{len(files):05d}.arrow"
        if not path.exists():
            _write_file(path, plan, corpus, order, layout, schema)
        offsets.extend(row[0].start for row in plan)
        packed.rows += len(plan)
        size = path.stat().st_size
        files.append(
            {"name": path.name, "rows": len(plan), "bytes": size, "blake2b": checksum(path)}
        )
        report(len(plan))
    np.asarray(offsets, _OFFSET).tofile(folder / OFFSETS)
    _write_dataset_files(folder, files, schema)
    return packed, files


def _write_file(
    path: Path, plan: list[Row], corpus: Corpus, order: Integers, layout: Layout, schema: pa.Schema
) -> None:
    import pyarrow as pa

    aside = path.with_suffix(".tmp")
    with open(aside, "wb") as file:
        with pa.ipc.new_stream(file, schema) as writer:
            for first in range(0, len(plan), layout.rows_per_batch):
                rows = plan[first : first + layout.rows_per_batch]
                writer.write_batch(_batch(rows, corpus, order, layout, schema))
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _batch(
    rows: list[Row], corpus: Corpus, order: Integers, layout: Layout, schema: pa.Schema
) -> pa.RecordBatch:
    import pyarrow as pa

    ids = np.full((len(rows), layout.sequence_length), layout.pad, layout.token_type)
    for row, pieces in zip(ids, rows, strict=True):
        for piece in pieces:
            out = row[piece.position : piece.position + piece.length]
            corpus.copy(int(order[piece.document]), piece.start, out)
    return pa.record_batch(
        [
            pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), layout.sequence_length),
            pa.array([[piece.position for piece in row] for row in rows], pa.list_(pa.int32())),
            pa.array([[piece.length for piece in row] for row in rows], pa.list_(pa.int32())),
        ],
        schema=schema,
    )


def _schema(layout: Layout) -> pa.Schema:
    import datasets

    ids = datasets.Value(layout.token_type.name)
    numbers = datasets.Sequence(datasets.Value("int32"))
    features = datasets.Features(
        {
            "input_ids": datasets.Sequence(ids, length=layout.sequence_length),
            "starts": numbers,
            "lengths": numbers,
        }
    )
    return features.arrow_schema


def _write_dataset_files(folder: Path, files: list[FileManifest], schema: pa.Schema) -> None:
    """The two small files by which `datasets.load_from_disk` knows a dataset."""
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": file["name"]} for file in files],
        "_fingerprint": "packed",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)


class PackedSplit:
    """The rows of a split, memory-mapped: any row costs the same, and no more than itself.

    May be pickled, and then opens the files anew.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: str) -> None:
        self._folder = folder / name
        self._rows = manifest["splits"][name]["rows"]
        self._rows_per_file = manifest["rows_per_file"]
        self._rows_per_batch = manifest["rows_per_batch"]
        self._names = [file["name"] for file in manifest["splits"][name]["files"]]
        self._open: dict[int, list[pa.RecordBatch]] = {}
        self._offsets: Array | None = None
        self.sequence_length = manifest["sequence_length"]

    def __len__(self) -> int:
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_offsets": None}

    def row(self, index: int) -> tuple[Array, Array]:
        """One row.

        Returns:
            `input_ids` (L,), read-only, in the type they are stored in, and `segment_ids` (L,)
            int32: 0 for padding, 1.. for the number of the document in the row.
        """
        batch, within = self._find(index)
        length = self.sequence_length
        ids = batch.column(0).values.to_numpy(zero_copy_only=True)
        segments = np.zeros(length, np.int32)
        starts, lengths = self._documents(batch, within)
        for number, (start, size) in enumerate(zip(starts, lengths, strict=True), start=1):
            segments[start : start + size] = number
        return ids[within * length : (within + 1) * length], segments

    def offset(self, index: int) -> int:
        """Position of the row's first token in its document: 0 where the document begins."""
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        if self._offsets is None:
            self._offsets = np.memmap(self._folder / OFFSETS, _OFFSET, "r")
        return int(self._offsets[index])

    def documents(self, index: int) -> tuple[Array, Array]:
        """Starts and lengths (documents,) of the documents in a row; its tokens are not read."""
        return self._documents(*self._find(index))

    def _documents(self, batch: pa.RecordBatch, within: int) -> tuple[Array, Array]:
        starts, lengths = (
            batch.column(column)[within].values.to_numpy(zero_copy_only=True) for column in (1, 2)
        )
        return starts, lengths

    def _find(self, index: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        file, within_file = divmod(index, self._rows_per_file)
        batch, within = divmod(within_file, self._rows_per_batch)
        if file not in self._open:
            import pyarrow as pa

            if len(self._open) >= _OPEN_FILES:
                del self._open[next(iter(self._open))]
            source = pa.memory_map(str(self._folder / self._names[file]))
            self._open[file] = list(pa.ipc.open_stream(source))
        return self._open[file][batch], within


def damaged_file(folder: Path, manifest: Manifest) -> str | None:
    """The first file that is missing or has another size than when it was written."""
    for name, split in manifest["splits"].items():
        for file in split["files"]:
            path = folder / name / file["name"]
            if not path.exists() or path.stat().st_size != file["bytes"]:
                return f"{name}/{file['name']}"
        offsets = folder / name / OFFSETS
        if not offsets.exists() or offsets.stat().st_size != split["rows"] * _OFFSET.itemsize:
            return f"{name}/{OFFSETS}"
    return None
