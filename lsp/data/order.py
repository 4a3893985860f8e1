"""The global order of samples: a pure function of the seed, so that a cursor is one number."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np

from lsp.core.errors import require
from lsp.core.seeding import stream

ORDER_STREAM = 1


class Order(Protocol):
    """Which row of the data the n-th sample of the run is."""

    def row(self, sample: int) -> int:
        """Row of global sample number `sample` (0, 1, …; it never ends)."""
        ...

    def goes_on(self, sample: int) -> bool:
        """Whether the text of the sample follows that of the sample a step before it."""
        ...


class SampleOrder:
    """Every epoch visits every row once, in an order that depends on (seed, epoch) alone.

    Neither the number of processes nor where a run was interrupted changes it.
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
        epoch, index = divmod(sample, self.num_rows)
        return int(self._permutation(epoch)[index])

    def goes_on(self, sample: int) -> bool:
        return False


class ContiguousOrder:
    """Each lane of the global batch reads a part of the stream, one row in every step.

    After Transformer-XL (1901.02860, section 3.2): what a lane remembers of a step is what comes
    before its row of the next. Lane r reads rows `r * S` to `r * S + S - 1`, in every epoch the
    same, where S is the number of steps in an epoch; the rows that are left over, fewer than there
    are lanes, are not read.

    Args:
        num_rows: Of the data.
        lanes: Rows in a step.

    Raises:
        UserError: There are fewer rows than lanes.
    """

    def __init__(self, num_rows: int, lanes: int) -> None:
        require(
            num_rows >= lanes,
            f"tokens_per_step: a step has {lanes} rows, each of which reads a part of the data of "
            f"its own, and the data has {num_rows} rows: use fewer tokens in a step, or more data",
        )
        self.lanes = lanes
        self.steps = num_rows // lanes

    def row(self, sample: int) -> int:
        step, lane = divmod(sample, self.lanes)
        return lane * self.steps + step % self.steps

    def goes_on(self, sample: int) -> bool:
        return sample // self.lanes % self.steps > 0
