"""The architectures that `architecture=` can name."""

from __future__ import annotations

from lsp.core.errors import unknown_choice
from lsp.models.interface import Architecture
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig, resolve

ARCHITECTURES: dict[str, Architecture] = {
    "reformer": Architecture(
        name="reformer",
        config_class=ReformerConfig,
        build=Reformer,
        objectives=("causal", "masked"),
        length_multiple=lambda config: config.length_multiple,
        resolve=resolve,
        check_shares=ReformerConfig.check_shares,
    ),
}


def get(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UserError: There is none; the message has the nearest name and all of them.
    """
    if name not in ARCHITECTURES:
        raise unknown_choice("architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name]


def name_of(config: object) -> str:
    """The name of the architecture that a config belongs to."""
    return next(name for name, row in ARCHITECTURES.items() if type(config) is row.config_class)
