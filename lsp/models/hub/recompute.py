"""Layers that keep their inputs alone, and are computed again for the backward pass.

The same for every architecture, also for those that `transformers` cannot do it for. Random
numbers are replayed, and the caller's autocast is entered again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lsp.models.hub.table import HubRow

CACHES = ("cache", "past_key_values", "layer_past")
"""What published layers call what they remember of tokens before."""


def layers_of(row: HubRow, model: Any) -> list[nn.Module]:
    """The layers of a published model: none is inside another."""
    if row.layers:
        found = [model.base_model.get_submodule(path) for path in row.layers]
        return [layer for stack in found for layer in stack]  # type: ignore[attr-defined]
    from transformers.modeling_layers import GradientCheckpointingLayer

    found, inside = [], set[nn.Module]()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def recompute(layers: list[nn.Module]) -> None:
    """Makes layers forget what they computed in training, until it is needed."""
    for layer in layers:
        layer.forward = _forgetting(layer, layer.forward)


def _forgetting(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def forgetting(*args: Any, **kwargs: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        # What is computed twice must not be remembered twice.
        kwargs |= {name: None for name in CACHES if name in kwargs}
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return forgetting
