"""Linear projections that attention can evaluate for some of its heads at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class HeadLinear(nn.Linear):
    """A projection to or from the concatenated heads, for some of them at a time.

    The slice is taken inside `forward`, where a sharded weight is gathered.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        *,
        rows: slice | None = None,
        columns: slice | None = None,
    ) -> torch.Tensor:
        """Computes some of the outputs (`rows`), or the share of some inputs (`columns`).

        The shares of all inputs add up to the whole: the bias is in that of the first.
        """
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        if rows is not None:
            weight, bias = weight[rows], None if bias is None else bias[rows]
        if columns is not None:
            weight, bias = weight[:, columns], None if columns.start else bias
        return F.linear(x, weight, bias)
