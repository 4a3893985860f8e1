"""The config of a published model or of a folder."""

from __future__ import annotations

from functools import cache
from typing import Any

from lsp.core.errors import UserError, require
from lsp.models.hub.keys import BOOKKEEPING

ABSOLUTE = {"position_embedding_type": "absolute"}
"""Keys of older files that transformers does not read any more, and the value that it has."""


@cache
def read(name: str) -> dict[str, Any]:
    """The content of a `config.json`; not to be changed.

    Args:
        name: A folder, or the name of a published model, which may have to be fetched.

    Raises:
        UserError: There is none, or nothing says of which type it is.
    """
    from transformers import PreTrainedConfig

    try:
        values, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise UserError(
            f"architecture.name={name} has no config.json that can be read: {reason}"
        ) from error
    require(
        isinstance(values.get("model_type"), str),
        f"architecture.name={name}: its config.json does not say which model_type it is of",
    )
    for key, value in ABSOLUTE.items():
        require(
            values.get(key, value) == value,
            f"architecture.name={name}: {key}={values.get(key)} is not known to transformers any "
            f"more, which would take it for {value}",
        )
    return dict(values)


def type_of(name: str) -> str:
    """The published name of its architecture."""
    found: str = read(name)["model_type"]
    return found


def settings(name: str) -> dict[str, Any]:
    """The keys that say something of the model."""
    return {key: value for key, value in read(name).items() if key not in BOOKKEEPING}
