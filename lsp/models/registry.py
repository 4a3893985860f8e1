"""The architectures that `architecture=` can name."""

from __future__ import annotations

from typing import Any

from lsp.core.errors import unknown_choice
from lsp.models import (
    longformer_config,
    mega_config,
    nezha_config,
    reformer_config,
    transformer_xl_config,
)
from lsp.models.hub import build as hub_build
from lsp.models.hub import config as hub_config
from lsp.models.hub.config import HubConfig
from lsp.models.interface import Architecture
from lsp.models.longformer import Longformer
from lsp.models.longformer_config import LongformerConfig
from lsp.models.mega import Mega
from lsp.models.mega_config import MegaConfig
from lsp.models.nezha import Nezha
from lsp.models.nezha_config import NezhaConfig
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from lsp.models.transformer_xl import TransformerXL
from lsp.models.transformer_xl_config import TransformerXLConfig

ARCHITECTURES: dict[str, Architecture] = {
    "reformer": Architecture(
        name="reformer",
        config_class=ReformerConfig,
        build=Reformer,
        objectives=lambda _: ("causal", "masked"),
        length_multiple=lambda config: config.length_multiple,
        resolve=reformer_config.resolve,
        check_shares=ReformerConfig.check_shares,
        residuals=lambda _: reformer_config.RESIDUALS,
    ),
    "longformer": Architecture(
        name="longformer",
        config_class=LongformerConfig,
        build=Longformer,
        objectives=lambda _: ("causal", "masked"),
        length_multiple=lambda config: config.length_multiple,
        resolve=longformer_config.resolve,
        check_shares=LongformerConfig.check_shares,
        residuals=longformer_config.residuals,
    ),
    "transformer_xl": Architecture(
        name="transformer_xl",
        config_class=TransformerXLConfig,
        build=TransformerXL,
        objectives=lambda _: ("causal",),
        length_multiple=lambda _: 1,
        resolve=transformer_xl_config.resolve,
        check_shares=TransformerXLConfig.check_shares,
        residuals=lambda _: transformer_xl_config.RESIDUALS,
        remembers=True,
    ),
    "mega": Architecture(
        name="mega",
        config_class=MegaConfig,
        build=Mega,
        objectives=lambda _: ("masked", "causal"),
        length_multiple=lambda config: config.length_multiple,
        resolve=mega_config.resolve,
        check_shares=MegaConfig.check_shares,
        residuals=lambda _: mega_config.RESIDUALS,
    ),
    "nezha": Architecture(
        name="nezha",
        config_class=NezhaConfig,
        build=Nezha,
        objectives=lambda _: nezha_config.OBJECTIVES,
        length_multiple=lambda _: 1,
        resolve=nezha_config.resolve,
        check_shares=NezhaConfig.check_shares,
        residuals=lambda _: nezha_config.RESIDUALS,
    ),
    "hub": Architecture(
        name="hub",
        config_class=HubConfig,
        build=hub_build.build,
        begin=hub_build.begin,
        objectives=hub_config.objectives,
        length_multiple=hub_config.length_multiple,
        resolve=hub_config.resolve,
        check_shares=HubConfig.check_shares,
        residuals=hub_config.residuals,
        segments=hub_config.segments,
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


def title_of(config: Any) -> str:
    """What it is called: its name, or the published one of what comes from transformers."""
    return config.type if isinstance(config, HubConfig) else name_of(config)


def name_of(config: object) -> str:
    """The name of the architecture that a config belongs to."""
    return next(name for name, row in ARCHITECTURES.items() if type(config) is row.config_class)
