"""`lsp architectures`: what can be trained, and what works with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lsp.cli.verb import Verb

if TYPE_CHECKING:
    from lsp.run.config import ArchitecturesConfig


def run(config: ArchitecturesConfig) -> int:
    """Prints the table, or one architecture."""
    from lsp.run.architectures import run_architectures

    return run_architectures(config)


def with_name(overrides: Sequence[str]) -> list[str]:
    """A first word that is no `key=value` is the name of an architecture."""
    words = list(overrides)
    if words and "=" not in words[0] and not words[0].startswith("~"):
        words[0] = f"name={words[0]}"
    return words


VERB = Verb(
    name="architectures",
    summary="list what can be trained: objectives, cost of attention, what works",
    examples=(
        ("all of them", "lsp architectures"),
        ("one, with its options and a command that trains it", "lsp architectures big_bird"),
        ("the table for a program", "lsp architectures format=json"),
    ),
    keys={
        "name": "an architecture, to know all of it; the word after lsp architectures",
        "format": "text, markdown or json",
        "out": "a file, instead of the terminal",
    },
    run=run,
    exit_codes={},
    rewrite=with_name,
)
