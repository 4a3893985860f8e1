"""The tokenized corpus: all units together, seen as a list of documents."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipelines.sources import Unit
from data_pipelines.units import Table, UnitStatistics, load_unit

Integers = np.ndarray[Any, np.dtype[np.int64]]

_OPEN_UNITS = 128  # files kept open at a time


class Corpus:
    """The documents of all units; tokens stay on disk.

    Attributes:
        keys: (documents,) hash of each document's beginning.
        lengths: (documents,) tokens, eos included.
        bytes: (documents,) bytes of text.
        splits: (documents,) 0 for training, 1 for validation.
        units: (documents,) the unit in which each begins.
        statistics: What each unit had to tell.
    """

    def __init__(self, units: Sequence[Unit], root: Path, token_type: np.dtype[Any]) -> None:
        loaded = [load_unit(unit, root) for unit in units]
        tables: list[Table] = [table for table, _ in loaded]
        self.statistics: list[UnitStatistics] = [statistics for _, statistics in loaded]
        parts = np.concatenate(tables)
        sizes = np.array([len(table) for table in tables], np.int64)
        self._part_unit = np.repeat(np.arange(len(tables)), sizes)
        # Where each part begins in the tokens of its unit: what was before it there.
        before = np.concatenate([[0], np.cumsum(parts["tokens"])])
        unit_start = before[np.concatenate([[0], np.cumsum(sizes)])[:-1]]
        self._part_offset: Integers = before[:-1] - np.repeat(unit_start, sizes)
        self._part_tokens: Integers = parts["tokens"].astype(np.int64)
        self._first_part: Integers = np.flatnonzero(parts["opens"])
        assert len(parts) == 0 or parts["opens"][0]
        self._last_part: Integers = np.append(self._first_part[1:], len(parts))

        self.keys = parts["key"][self._first_part]
        self.splits = parts["split"][self._first_part]
        self.units = self._part_unit[self._first_part]
        self.lengths = _sums(parts["tokens"], self._first_part)
        self.bytes = _sums(parts["bytes"], self._first_part)
        paths = [root / unit.name / "tokens.bin" for unit in units]

        # Read rather than mapped: pages of a mapped corpus would count as this process' memory.
        @functools.lru_cache(_OPEN_UNITS)
        def open_unit(unit: int) -> IO[bytes]:
            return open(paths[unit], "rb")

        self._open_unit = open_unit
        self._token_bytes = token_type.itemsize

    def __len__(self) -> int:
        return len(self.lengths)

    def order(self, split: int, seed: int, shuffle: bool) -> Integers:
        """The documents of a split, in the order in which they are packed.

        Shuffled, it is a pure function of the seed and the set of documents: neighbours in a
        folder do not become neighbours in a row, and the order of files does not matter.
        """
        chosen = np.flatnonzero((self.splits == split) & (self.lengths > 0))
        if not shuffle:
            return chosen
        return chosen[np.argsort(_mix(self.keys[chosen], seed), kind="stable")]

    def copy(self, document: int, start: int, out: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Copies tokens `start : start + len(out)` of a document."""
        written = 0
        for part in range(self._first_part[document], self._last_part[document]):
            size = int(self._part_tokens[part])
            if start < size and written < len(out):
                taken = min(size - start, len(out) - written)
                file = self._open_unit(int(self._part_unit[part]))
                file.seek((int(self._part_offset[part]) + start) * self._token_bytes)
                target = out[written : written + taken]
                read = file.readinto(target.data)  # type: ignore[attr-defined]
                assert read == target.nbytes
                written += taken
            start = max(0, start - size)
        assert written == len(out)


def _sums(values: np.ndarray[Any, np.dtype[Any]], firsts: Integers) -> Integers:
    if len(firsts) == 0:
        return np.zeros(0, np.int64)
    return np.add.reduceat(values.astype(np.int64), firsts)


def _mix(
    keys: np.ndarray[Any, np.dtype[np.uint64]], seed: int
) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The finaliser of SplitMix64: other seeds give unrelated orders of the same keys."""
    mixed = keys + np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
