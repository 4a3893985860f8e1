"""The packing certificate of many models: one cell for each way to compute each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lsp.core.errors import UserError
from lsp.core.seeding import seed_everything
from lsp.models import registry
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.verify.certify import certify
from lsp.verify.mixing import Mixing
from lsp.verify.variants import LENGTH, VARIANTS, Variant, build, config_of

MEMORIES = ("stored", "recomputed", "reversible")
DEGREES = (1, 2)


@dataclass(frozen=True)
class Cell:
    """One way to compute a variant.

    Attributes:
        architecture: Name of the architecture.
        attention: Name of the variant's attention.
        objective: `causal` or `masked`.
        memory: What is kept per layer for the backward pass.
        precision: Number format of matrix products.
        degree: Processes that share the positions of a row.
    """

    architecture: str
    attention: str
    objective: str
    memory: str
    precision: str
    degree: int

    @property
    def variant(self) -> Variant:
        return next(
            v
            for v in VARIANTS
            if (v.architecture, v.attention) == (self.architecture, self.attention)
        )

    def __str__(self) -> str:
        shared = f", rows shared by {self.degree}" if self.degree > 1 else ""
        return (
            f"{self.architecture}, {self.attention}, {self.objective}, {self.memory}, "
            f"{self.precision}{shared}"
        )


def all_cells(degrees: Iterable[int] = DEGREES) -> Iterator[Cell]:
    """Every variant, objective, memory form and degree in fp32; in bf16 the leanest memory form.

    Degrees that a variant cannot be shared by are left out.
    """
    for degree in degrees:
        for variant in VARIANTS:
            residuals_of = registry.get(variant.architecture).residuals
            for objective in variant.objectives:
                if not _can_be_shared(variant, objective, degree):
                    continue
                residuals = residuals_of(config_of(variant, objective=objective))
                for memory in (m for m in MEMORIES if m in residuals):
                    yield Cell(*_names(variant), objective, memory, "fp32", degree)
                yield Cell(*_names(variant), objective, residuals[0], "bf16", degree)


def _can_be_shared(variant: Variant, objective: str, degree: int) -> bool:
    architecture = registry.get(variant.architecture)
    config = config_of(variant, objective=objective, degree=degree)
    try:
        architecture.check_shares(config, LENGTH * degree, degree)
    except UserError:
        return False
    return True


def _names(variant: Variant) -> tuple[str, str]:
    return variant.architecture, variant.attention


def certify_cells(
    cells: Iterable[Cell],
    exchange: Exchange = WHOLE_ROWS,
    device: torch.device | None = None,
    done: Callable[[Cell, Mixing], None] = lambda *_: None,
) -> list[Mixing]:
    """Certifies the model of each cell; every process of `exchange` must call it.

    Args:
        cells: Of the exchange's degree.
        exchange: Between the processes that share rows.
        device: Where; None for the host.
        done: Called after each.
    """
    results = []
    for cell in cells:
        assert cell.degree == exchange.degree
        seed_everything(0)
        causal = cell.objective == "causal"
        model = build(
            cell.variant, objective=cell.objective, residual=cell.memory, degree=cell.degree
        )
        found = certify(
            model.to(device or "cpu"),
            sequence_length=LENGTH * cell.degree,
            causal=causal,
            exchange=exchange,
            precision=cell.precision,
            device=device,
        )
        done(cell, found)
        results.append(found)
    return results


def record(found: Mixing, device: torch.device) -> dict[str, Any]:
    """A result in plain values, ready for JSON."""
    return {
        "holds": found.holds,
        "documents": found.documents,
        "in_time": found.causality,
        "remembered": found.memory,
        "problems": found.problems,
        "known": found.known,
        "reaches": {
            what: sorted([source, target] for (source, target), seen in pairs.items() if seen)
            for what, pairs in found.reaches.items()
        },
        "length": found.length,
        "device": device.type,
    }
