"""Models of which one seed decides everything random in a forward pass."""

from __future__ import annotations

import torch

from lsp.models.interface import LanguageModel
from lsp.models.layers.dropout import derive_seed


class SeededModel(LanguageModel):
    """Remembers the seed of a micro-batch until its forward pass takes it."""

    _seed: int | None = None

    def begin_micro_batch(self, seed: int, first_row: int = 0) -> None:
        """Sets the seed of everything random in the next forward pass in training mode.

        A pass that was given none draws one number from torch's global CPU generator.
        """
        self._seed = derive_seed(seed, first_row)

    def _take_seed(self) -> int | None:
        """Of the pass that begins, and of no other; None in evaluation, which is not random."""
        if not self.training:
            return None
        seed, self._seed = self._seed, None
        return int(torch.randint(2**62, ())) if seed is None else seed
