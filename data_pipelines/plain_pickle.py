"""Reads pickles that hold plain containers alone; whatever else one asks for is refused.

A pickle is a program: it names functions and calls them. Of these, a vocabulary needs none but the
constructors of containers, so no other name is looked up, let alone called.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

from data_pipelines.errors import DataError

_ADMITTED = {
    ("collections", "Counter"): dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
}
"""Dictionaries, lists, tuples, strings and numbers need no name at all.

Types that cannot be changed alone: a pickle may set attributes of what it names, and those of the
class `Counter` are everybody's.
"""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of `torch.save` before 1.6
_LEGACY_HEADER = 3  # pickles before the object: magic number, version, the machine


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, key: Any) -> Any:
        raise pickle.UnpicklingError("it asks for stored tensors")


def read_plain_pickle(path: Path) -> Any:
    """The object in a pickle, or in what `torch.save` wrote in either of its forms.

    Raises:
        DataError: if it is damaged or needs anything but dictionaries, lists, tuples, sets,
            counters (given as dictionaries), strings, bytes, numbers, truth values and None.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (member,) = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
                return _load(io.BytesIO(archive.read(member)))
        with open(path, "rb") as file:
            content = _load(file)
            if isinstance(content, int) and content == _LEGACY_MAGIC:
                for _ in range(_LEGACY_HEADER):
                    content = _load(file)
            return content
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path} is not read: {reason[:200]}; only pickles of plain containers are: put a "
            "vocab.txt with a word per line in its place"
        ) from error


def _load(file: IO[bytes]) -> Any:
    return _PlainUnpickler(file).load()
