"""What configs check of single fields; needs no torch."""

from __future__ import annotations

from typing import Any

from lsp.core.errors import require


def check_at_least(config: Any, least: int, *keys: str) -> None:
    """Refuses fields that are below a number.

    Raises:
        UserError: One is; the message names it.
    """
    for key in keys:
        value = getattr(config, key)
        require(value >= least, f"{key}={value} has to be {least} or more")


def check_dropout(config: Any, *keys: str) -> None:
    """Refuses fields that are no probability to drop something with.

    Raises:
        UserError: One is not; the message names it.
    """
    for key in keys:
        value = getattr(config, key)
        require(0 <= value < 1, f"{key}={value} has to be at least 0 and below 1, such as 0.1")


def check_token_ids(config: Any, *keys: str) -> None:
    """Refuses fields that are a token which the config's `vocab_size` does not have.

    Raises:
        UserError: One is; the message names it.
    """
    for key in keys:
        value = getattr(config, key)
        require(
            not isinstance(value, int) or 0 <= value < config.vocab_size,
            f"{key}={value} is not below vocab_size={config.vocab_size}",
        )
