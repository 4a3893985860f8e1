"""What is told to the user without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user asked for, in one or two lines.

    The message names the key, the value given and values that would work. The command line
    prints it without a traceback and exits with code 2.
    """


class LeakError(Exception):
    """Tokens of a model reach where they must not; the message says which, and where.

    The command line prints it without a traceback and exits with `LEAK`.
    """


def unknown_choice(key: str, value: object, choices: Iterable[str]) -> UserError:
    """Builds the error for a value outside a closed set, the nearest choice first."""
    names = sorted(choices)
    near = get_close_matches(str(value), names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"{key}={value} is not known: {hint}choose one of {', '.join(names)}")


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)
