"""Linear projections that attention can evaluate for some of its heads at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class HeadLinear(nn.Linear):
    """A projection without bias, to or from the concatenated heads.

    The slice is taken inside `forward`, where a sharded weight is gathered.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        *,
        rows: slice | None = None,
        columns: slice | None = None,
    ) -> torch.Tensor:
        """Computes some of the outputs (`rows`), or the share of some inputs (`columns`)."""
        weight = self.weight
        if rows is not None:
            weight = weight[rows]
        if columns is not None:
            weight = weight[:, columns]
        return F.linear(x, weight)
