"""`lsp architectures`: the table of what can be trained, and one row of it with all its keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from lsp.core.errors import UserError, unknown_choice
from lsp.core.exit_codes import DONE
from lsp.models.catalog import Entry, entries
from lsp.run.architecture import Description, describe
from lsp.run.config import ArchitecturesConfig

COLUMNS: dict[str, Callable[[Entry], str]] = {
    "architecture": lambda entry: entry.name,
    "attention": lambda entry: entry.cost,
    "longest row": lambda entry: entry.longest,
    "packing": lambda entry: "kept apart" if entry.documents else "one per row",
    "sequence parallel": lambda entry: "yes" if entry.sequence_parallel else "no",
    "tiled": lambda entry: ", ".join(entry.tiled) or "no",
    "kernels": lambda entry: ", ".join(entry.kernels),
    "objectives, its paper's first": lambda entry: ", ".join(entry.objectives),
}

LEGEND = """\
attention: what it costs in the length L of a row. longest row: any, or the key that says. packing:
whether several documents of a row are kept apart, or each needs a row of its own. sequence
parallel: whether processes can share the positions of a row (parallelism.sequence). tiled: what is
computed a part of the positions at a time. kernels: of attention, the plainest first."""

MARKDOWN_HEAD = """\
# Architectures

Written by `lsp architectures format=markdown out={out}` from the tables that the code reads; a test
compares them. `lsp architectures NAME` shows an architecture's keys and a command that trains it.
"""


def run_architectures(config: ArchitecturesConfig) -> int:
    """Prints, or writes, the table or one architecture; returns the exit code.

    Raises:
        UserError: There is no architecture of that name, or `out` cannot be written.
    """
    text = _table(config) if config.name is None else _one(config.name, config.format)
    if config.out is None:
        print(text)
        return DONE
    try:
        Path(config.out).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"out={config.out} cannot be written: {error.strerror}") from error
    print(f"written to {config.out}")
    return DONE


def _table(config: ArchitecturesConfig) -> str:
    rows = entries()
    if config.format == "json":
        return json.dumps([_plain(entry) for entry in rows], ensure_ascii=False, indent=1)
    return markdown(rows, config.out) if config.format == "markdown" else as_text(rows)


def as_text(rows: Sequence[Entry]) -> str:
    """The table in columns of text, the same on a terminal and in a pipe."""
    parts = []
    for title, native in (
        ("Native, architecture=NAME:", True),
        ("From transformers, architecture=hub architecture.model_type=NAME:", False),
    ):
        chosen = [entry for entry in rows if entry.native is native]
        cells = [list(COLUMNS), *([column(e) for column in COLUMNS.values()] for e in chosen)]
        parts.append("\n".join([title, *(f"  {line}" for line in _aligned(cells))]))
    count = f"{len(rows)} architectures; lsp architectures NAME tells more of one."
    return "\n\n".join([*parts, LEGEND, count])


def markdown(rows: Sequence[Entry], out: str | None) -> str:
    """The table as a file that is kept."""
    parts = [MARKDOWN_HEAD.format(out=out or "FILE")]
    for title, native in (
        ("## Native: `architecture=NAME`", True),
        ("## From `transformers`: `architecture=hub architecture.model_type=NAME`", False),
    ):
        lines = ["| " + " | ".join((*COLUMNS, "to know")) + " |"]
        lines.append("|" + " --- |" * (len(COLUMNS) + 1))
        for entry in rows:
            if entry.native is native:
                cells = [column(entry) for column in COLUMNS.values()]
                lines.append("| " + " | ".join((f"`{cells[0]}`", *cells[1:], entry.note)) + " |")
        parts.append("\n".join([title, "", *lines, ""]))
    return "\n".join([*parts, LEGEND])


def _one(name: str, form: str) -> str:
    rows = entries()
    chosen = [entry for entry in rows if entry.name == name]
    if not chosen:
        raise unknown_choice("architecture", name, {entry.name for entry in rows})
    # One that is written here may be had as published, too.
    described = [(entry, describe(entry)) for entry in chosen]
    if form == "json":
        plain = [
            _plain(entry) | {"keys": one.keys, "command": one.command} for entry, one in described
        ]
        return json.dumps(plain, ensure_ascii=False, indent=1, default=str)
    parts = [part for entry, one in described for part in _told(entry, one)]
    if form == "markdown":
        return "\n\n".join([f"# `{name}`", *(f"```\n{part}\n```" for part in parts)])
    return "\n\n".join(parts)


def _told(entry: Entry, description: Description) -> list[str]:
    facts = [[title, column(entry)] for title, column in COLUMNS.items()][1:]
    facts += [["to know", entry.note]] if entry.note else []
    keys = [[f"{key}={_typed(value)}", says] for key, (value, says) in description.keys.items()]
    return [
        f"{entry.name}: {description.title}",
        _section("What works", facts),
        _section(f"Keys of {description.node}, with the published defaults", keys),
        f"A small one on this machine:\n  {description.command}",
    ]


def _section(title: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"{title}:", *(f"  {line}" for line in _aligned(rows))])


def _plain(entry: Entry) -> dict[str, object]:
    return {"selected": entry.selected, **asdict(entry)}


def _typed(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
