"""The tables of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

SUMMARY = (
    "rows", "tokens", "loss", "bits_per_byte", "bits_per_character", "perplexity",
    "word_perplexity", "accuracy",
)  # fmt: skip
FIGURES = ("tokens", "loss", "bits_per_byte", "accuracy")


def print_summary(console: Console, result: dict[str, Any]) -> None:
    """What the whole split came to."""
    title = f"{result['run']}, step {result['step']:,}, {result['split']}"
    table = Table("", "", title=title, show_header=False, min_width=_width(title))
    table.columns[1].justify = "right"
    for key in SUMMARY:
        if result[key] is not None:
            table.add_row(_words(key), _number(result[key]))
    console.print(table)


def print_report(console: Console, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """One report; nothing where nothing was found.

    Args:
        console: Where to.
        name: Key of the report in the result.
        rows: Its rows.
    """
    if not rows:
        return
    if name == "passkey":
        _print_passkey(console, rows)
        return
    title, header, first = _REPORTS[name]
    keys = [key for key in FIGURES if rows[0][key] is not None]
    table = Table(header(rows[0]), title=title, min_width=_width(title))
    for key in keys:
        table.add_column(_words(key), justify="right")
    for row in rows:
        table.add_row(first(row), *(_number(row[key]) for key in keys))
    console.print(table)


def _print_passkey(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    title = "pass keys named (and likelier than every distractor), by length"
    table = Table("depth", title=title, min_width=_width(title))
    for length in lengths:
        table.add_column(f"{length:,}", justify="right")
    for depth in dict.fromkeys(row["depth"] for row in rows):
        found = {row["length"]: row for row in rows if row["depth"] == depth}
        cells = [
            f"{found[n]['accuracy']:.0%} ({found[n]['likeliest']:.0%})" if n in found else ""
            for n in lengths
        ]
        table.add_row(f"{depth:.0%}", *cells)
    console.print(table)


def _width(title: str) -> int:
    """Of a table whose title is to stay on one line, as far as a terminal has room."""
    return min(len(title), 80)


Row = dict[str, Any]
_REPORTS: dict[str, tuple[str, Callable[[Row], str], Callable[[Row], str]]] = {
    "by_position": (
        "by position in the document",
        lambda row: "position",
        lambda row: f"{row['from']:,}-{row['to']:,}",
    ),
    "by_context": (
        "by context length, the same tokens",
        lambda row: "tokens seen before",
        lambda row: f"{row['from']:,}-{row['to']:,}",
    ),
    "sliding": (
        "sliding over whole documents",
        lambda row: "remembered" if "memory" in row else "stride (least context)",
        lambda row: (
            f"{row['memory']:,}" if "memory" in row else f"{row['stride']:,} ({row['context']:,})"
        ),
    ),
}


def _words(key: str) -> str:
    named = {"loss": "loss (nats per token)", "word_perplexity": "perplexity per word"}
    return named.get(key, key.replace("_", " "))


def _number(value: float | int) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.3g}"
