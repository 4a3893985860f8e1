"""The packing certificate of a model of the registry, by what its architecture claims."""

from __future__ import annotations

import torch

from lsp.core.errors import UserError
from lsp.models import registry
from lsp.models.hub.config import HubConfig
from lsp.models.interface import LanguageModel
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.verify.body import WRITER, bodies
from lsp.verify.lengths import short_length
from lsp.verify.mixing import Mixing, examine, merged


def certify(
    model: LanguageModel,
    *,
    sequence_length: int,
    causal: bool,
    exchange: Exchange = WHOLE_ROWS,
    precision: str = "fp32",
    device: torch.device | None = None,
    length: int = 0,
    quick: bool = False,
) -> Mixing:
    """Examines a model on rows as short as suffices; every process of `exchange` must call it.

    Args:
        model: With whole weights and empty gradients, on the device.
        sequence_length: Of the training.
        causal: Whether it is trained to predict the next token.
        exchange: Between the processes that share rows.
        precision: `fp32`, `bf16` or `fp16`.
        device: Of the model; None for the host.
        length: Of the rows; 0 for one that suffices.
        quick: Whether it has to be done in a moment.
    """
    config, device = model.config, device or torch.device("cpu")
    architecture = registry.get(registry.name_of(config))
    across = bool(getattr(config, "memory_across_documents", False))
    remembers = architecture.remembers and getattr(config, "mem_len", 1) > 0

    def fits(length: int) -> bool:
        try:
            architecture.check_shares(config, length, exchange.degree)
            if isinstance(config, HubConfig):  # others have what their positions are made for
                config.check_length(length)
        except UserError:
            return False
        return True

    length = length or short_length(
        sequence_length,
        architecture.length_multiple(config),
        fits,
        model.flops_per_token if quick else lambda _: 0.0,
        device.type,
    )
    model.share_rows(exchange)
    found = merged(
        examine(
            body,
            length=length,
            vocab_size=config.vocab_size,
            causal=forward,
            apart=architecture.segments(config) and not across,
            memory_apart=not across if remembers else None,
            exchange=exchange,
            precision=precision,
            device=device,
            quick=quick,
            # Published code may mix up the places of a decoder's tokens: the first see others then.
            early=getattr(body, "side", "") == WRITER,
        )
        for body, forward in bodies(model, causal)
    )
    if found.leaks and isinstance(config, HubConfig):
        found.known = config.row.leak
    return found
