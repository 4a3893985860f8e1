"""The global order of samples: a pure function of the seed, so that a cursor is one number."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lsp.core.seeding import stream

ORDER_STREAM = 1


class SampleOrder:
    """Which row of the data the n-th sample of the run is.

    Every epoch visits every row once, in an order that depends on (seed, epoch) alone. Neither
    the number of processes nor where a run was interrupted changes it.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        if num_rows <= 0:
            raise ValueError(f"num_rows={num_rows} must be positive")
        self.num_rows = num_rows
        self.seed = seed
        # Steps cross an epoch boundary now and then, so the previous order is kept too.
        self._permutation = lru_cache(maxsize=2)(self._make_permutation)

    def _make_permutation(self, epoch: int) -> np.ndarray:
        return stream(self.seed, ORDER_STREAM, epoch).permutation(self.num_rows)

    def row(self, sample: int) -> int:
        """Row of global sample number `sample` (0, 1, …; it never ends)."""
        epoch, index = divmod(sample, self.num_rows)
        return int(self._permutation(epoch)[index])
