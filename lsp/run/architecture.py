"""One architecture of `lsp architectures`: its keys, and a command that trains it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lsp.models.catalog import Entry
from lsp.run.config import ARCHITECTURES


@dataclass(frozen=True)
class Description:
    """What can be set of an architecture.

    Attributes:
        title: What it is, in words.
        node: Where its keys belong.
        keys: Their defaults as published, and a remark, by name.
        command: Trains a small one.
    """

    title: str
    node: str
    keys: dict[str, tuple[Any, str]]
    command: str


def describe(entry: Entry) -> Description:
    """What can be set of an architecture."""
    config = ARCHITECTURES[entry.name]
    keys = {field.name: (_default(field), "") for field in dataclasses.fields(config)}
    return Description(
        title="written here",
        node="architecture",
        keys=keys,
        command=f"lsp train run_name={entry.name} {entry.selected} objective={entry.objectives[0]}",
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default
