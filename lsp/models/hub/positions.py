"""Positions that begin anew with every document, where the published model counts them itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lsp.models.hub.documents import Documents, replace_forward
from lsp.models.hub.table import HubRow

COUNTS = "embed_positions"
"""What encoders and decoders that count positions call their embedding."""


def prepare(model: nn.Module, documents: Documents, row: HubRow) -> None:
    """Has an encoder or decoder embed the positions of tokens in their documents."""
    if row.kind != "encoder_decoder":
        return
    embedding = getattr(model, COUNTS, None)
    if embedding is not None and _type(model) != "prophetnet":
        replace_forward(embedding, _embedded, documents)


def _type(model: nn.Module) -> str:
    config: Any = model.config
    found: str = config.model_type
    return found


def _embedded(module: Any, documents: Documents, *args: Any, **kwargs: Any) -> torch.Tensor:
    positions_BL = documents.positions_BL
    published = type(module).forward
    if positions_BL is None or positions_BL.shape != _shape(args, kwargs):
        counted: torch.Tensor = published(module, *args, **kwargs)
        return counted
    if isinstance(module, nn.Embedding):
        return nn.Embedding.forward(module, positions_BL + getattr(module, "offset", 0))
    if hasattr(module, "weights"):  # a table of sines, after that of padding
        table_PD: torch.Tensor = module.weights
        return table_PD[positions_BL + module.padding_idx + 1].detach()
    # Sines of no table, for positions from 0 on, or from the number that is remembered.
    if not documents.fits(positions_BL.shape):
        following_BLD: torch.Tensor = published(module, *args, **kwargs)
        return following_BLD
    sines_LD: torch.Tensor = published(module, *args[:1])[0]
    return sines_LD[positions_BL]


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Size:
    """Of the tokens: they, their vectors or their shape are the first argument."""
    first = args[0] if args else next(iter(kwargs.values()))
    return torch.Size((first if isinstance(first, tuple) else first.shape)[:2])
