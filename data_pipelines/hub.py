"""Datasets that `datasets.load_dataset` loads: from the Hub, a local folder or a builder."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def spans(data: DataConfig) -> Iterator[tuple[tuple[str, int, int], int]]:
    """Divides the dataset: rows if it is on disk, else the shards that its stream consists of.

    Yields:
        (name, first, after the last) and about how many bytes that is, 0 if not known.
    """
    dataset = load(data)
    if data.streaming:
        for shard in range(dataset.num_shards):
            yield (str(data.name), shard, shard + 1), 0
        return
    if len(dataset) == 0:
        return
    size = max(1, dataset.data.nbytes)
    rows = max(1, len(dataset) * data.unit_bytes // size)
    for first in range(0, len(dataset), rows):
        last = min(len(dataset), first + rows)
        yield (str(data.name), first, last), size * (last - first) // len(dataset)


def texts(data: DataConfig, start: int, stop: int) -> Iterator[tuple[str, list[str | None]]]:
    """(where, texts) of the rows or the shard that a span names: a text for each field."""
    dataset = load(data)
    if data.streaming:
        rows = dataset.shard(num_shards=dataset.num_shards, index=start)
        unit = f"shard {start} row"
    else:
        rows = dataset.select(range(start, stop))
        unit = "row"
    for number, row in enumerate(rows, start=0 if data.streaming else start):
        found = [_text(data, key, field, row, number) for key, field in _fields(data)]
        yield f"{data.name} {unit} {number}", found


def load(data: DataConfig) -> Any:
    """The dataset, with the text column checked.

    Raises:
        DataError: if it cannot be found or loaded, or has no such split or column.
    """
    # The cache of loaded datasets is keyed by what shapes the result.
    key = (data.name, data.config_name, data.split, data.revision, data.streaming, _fields(data))
    return _load(json.dumps(key), tuple(data.paths))


def _fields(data: DataConfig) -> list[tuple[str, str]]:
    """(key of the configuration, name) of the fields that are read."""
    return list(zip(("field", "target_field"), data.text_fields, strict=False))


@functools.cache
def _load(key: str, paths: tuple[str, ...]) -> Any:
    import datasets

    name, config_name, split, revision, streaming, fields = json.loads(key)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        dataset = datasets.load_dataset(
            name,
            config_name,
            data_files=list(paths) or None,
            split=split,
            revision=revision,
            streaming=streaming,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise DataError(
            f"data.name={name} (config_name={config_name}, split={split}) "
            f"cannot be loaded: {reason[:300]}"
        ) from error
    features = dataset.features
    if features is not None:
        for named, field in fields:
            if field not in features:
                raise DataError(
                    f"data.{named}={field} is not a column of {name}: it has {', '.join(features)}"
                )
            kind = features.arrow_schema.field(field).type
            if not is_text(kind):
                raise DataError(f"data.{named}={field} of {name} is {kind}, not text")
        dataset = dataset.select_columns([field for _, field in fields])
    return dataset


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds text (a column of nulls counts as empty text)."""
    import pyarrow as pa

    checks = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_null,
    )
    return any(check(kind) for check in checks)


def _text(data: DataConfig, key: str, field: str, row: dict[str, Any], number: int) -> str | None:
    if field not in row:
        raise DataError(
            f"row {number} of {data.name} has no field '{field}' (data.{key}): "
            f"it has {', '.join(row)}"
        )
    text = row[field]
    if text is not None and not isinstance(text, str):
        raise DataError(
            f"row {number} of {data.name}: field '{field}' is {type(text).__name__}, not text"
        )
    return text
