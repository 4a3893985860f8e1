"""Activation functions by the names of published configurations.

Nothing here needs torch until a function is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# fmt: off
NAMES = (
    "relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish", "tanh", "sigmoid", "mish",
    "relu6", "leaky_relu", "hardswish", "relu2", "quick_gelu", "linear",
)
# fmt: on


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function called `name`, one of `NAMES`, of any shape to the same."""
    import torch
    import torch.nn.functional as F

    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_new": partial(F.gelu, approximate="tanh"),
        "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
        "swish": F.silu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "mish": F.mish,
        "relu6": F.relu6,
        "leaky_relu": F.leaky_relu,
        "hardswish": F.hardswish,
        "relu2": lambda x: F.relu(x).square(),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "linear": lambda x: x,
    }
    return functions[name]
