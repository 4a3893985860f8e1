"""The short certificate that a training begins with."""

from __future__ import annotations

from typing import Any

import torch

from lsp.core.errors import LeakError
from lsp.core.objectives import NEXT_TOKEN
from lsp.models.interface import LanguageModel
from lsp.parallel.collectives import together
from lsp.parallel.runtime import Runtime
from lsp.run.config import RunConfig
from lsp.verify.certify import certify

ROOM = 2.5
"""Times the weights: with their gradients, and what a short row takes."""


def certify_start(config: RunConfig, model: LanguageModel, place: Runtime) -> dict[str, Any]:
    """Certifies the model that is about to be trained; every process must call it.

    Args:
        config: Of the run, completed.
        model: Its model with whole weights, on the host, where it comes back to.
        place: This process.

    Returns:
        What was found, in plain values: `result` in words, and what it was found on.

    Raises:
        LeakError: Tokens reach where they must not.
    """
    device, precision = place.device, config.precision.name
    if device.type == "cuda" and not _has_room(model, device):
        if place.exchange.degree > 1:
            return {"result": "not certified: one device has no room for the whole weights"}
        device = torch.device("cpu")
        precision = "fp32" if precision == "fp16" else precision
    try:
        found = certify(
            model.to(device),
            sequence_length=config.sequence_length,
            causal=config.objective.name in NEXT_TOKEN,
            exchange=place.exchange,
            precision=precision,
            device=device,
            quick=True,
        )
    finally:
        model.to("cpu")

    def refuse_leaks() -> None:
        if found.leaks:
            leaks = "\n".join(f"  {leak}" for leak in found.leaks)
            known = f"\nknown of the published code: {found.known}" if found.known else ""
            raise LeakError(
                f"the model leaks, and is not trained (verify.at_start=false trains it all the "
                f"same); in rows of {found.length} tokens:\n{leaks}{known}"
            )

    together(refuse_leaks)
    return {
        "result": str(found) if found.holds else f"not certified: {found}",
        "length": found.length,
        "device": device.type,
        "precision": precision,
    }


def _has_room(model: LanguageModel, device: torch.device) -> bool:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    free, _ = torch.cuda.mem_get_info(device)
    return ROOM * weights < free
