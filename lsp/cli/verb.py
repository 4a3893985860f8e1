"""What a verb of the command line consists of. Imports nothing heavy: `lsp` alone reads these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def as_typed(overrides: Sequence[str]) -> list[str]:
    """The overrides as they are."""
    return list(overrides)


@dataclass(frozen=True)
class Verb:
    """One row of the table in `lsp.cli.main`.

    Attributes:
        name: The word after `lsp`; also the primary config in `conf/`.
        summary: What it does, in one line.
        examples: (what for, command) pairs; the first is shown by `lsp` alone.
        keys: One-line explanations of the main keys.
        run: Does it, given the verb's dataclass; returns the exit code. Imports late.
        exit_codes: What the exit status means, beside 0, 1 and 2.
        rewrite: Applied to the overrides of a single run before Hydra reads them.
    """

    name: str
    summary: str
    examples: tuple[tuple[str, str], ...]
    keys: Mapping[str, str]
    run: Callable[[Any], int]
    exit_codes: Mapping[int, str]
    rewrite: Callable[[Sequence[str]], list[str]] = as_typed
