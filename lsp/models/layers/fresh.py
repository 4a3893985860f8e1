"""Fresh weights, as published models have them."""

from __future__ import annotations

from torch import nn


def normal_weights(module: nn.Module, std: float) -> None:
    """Draws the weights of a linear layer or an embedding; biases are 0, other modules as made."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
