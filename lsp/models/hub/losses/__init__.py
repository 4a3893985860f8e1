"""Losses that are more than scores of each position against its label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Loss = Callable[[Any, dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]
"""From a `HubModel` and a batch to the summed loss (fp32 scalar) and the number of predictions."""

LOSSES: dict[str, Loss] = {}
"""By objective."""
