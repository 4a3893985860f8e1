"""The one exception type that means "the user can fix this"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class DataError(ValueError):
    """A mistake in what the user asked for or in the data, told in one or two lines.

    The message names the key or the file, what was found there and what would work.
    """


def unknown_choice(key: str, value: object, choices: Iterable[str]) -> DataError:
    """Builds the error for a value outside a closed set, the nearest choice first."""
    names = sorted(choices)
    near = get_close_matches(str(value), names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return DataError(f"{key}={value} is not known: {hint}choose one of {', '.join(names)}")


def require(condition: bool, message: str) -> None:
    """Raises `DataError(message)` unless `condition` holds."""
    if not condition:
        raise DataError(message)
