"""Loss by position in the document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from lsp.core.batch import IGNORE_INDEX
from lsp.evaluation.figures import Sums, Units
from lsp.models.interface import LanguageModel

FIRST_BUCKET = 64
"""Positions of the first bucket; every further one is as large as all before it."""


@dataclass
class Bucket:
    """What was predicted at positions `start` to `stop` of a document."""

    start: int
    stop: int
    sums: Sums = field(default_factory=Sums)


@dataclass
class PositionMeter:
    """Loss of a batch, as a model has it, while adding up what the sum alone does not tell.

    Attributes:
        module: The model, in evaluation mode.
        unknown_id: The token of what is not in the vocabulary; None where there is none.
        buckets: Results by position in the document.
        unknown: How many of the predicted tokens were that one.
    """

    module: LanguageModel
    unknown_id: int | None = None
    buckets: list[Bucket] = field(default_factory=list)
    unknown: int = 0

    def __call__(self, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sum and count of a batch, as `lsp.training.evaluation.evaluate` asks for them."""
        losses_T, hits_T = self.module.token_losses(**tensors)
        predicted_BL = tensors["labels"] != IGNORE_INDEX
        if self.unknown_id is not None:
            self.unknown += int((tensors["labels"] == self.unknown_id).sum())
        if len(losses_T):
            # Where there is a decoder, it is what predicts.
            own = tensors.get("decoder_position_ids", tensors["position_ids"])
            self._add(own[predicted_BL], losses_T, hits_T)
        return losses_T.double().sum(), predicted_BL.sum()

    def _add(self, positions_T: torch.Tensor, losses_T: torch.Tensor, hits_T: torch.Tensor) -> None:
        last = int(positions_T.max())
        while not self.buckets or self.buckets[-1].stop <= last:
            start = self.buckets[-1].stop if self.buckets else 0
            self.buckets.append(Bucket(start, max(FIRST_BUCKET, 2 * start)))
        for bucket in self.buckets:
            inside_T = (positions_T >= bucket.start) & (positions_T < bucket.stop)
            bucket.sums.add(losses_T[inside_T], hits_T[inside_T])

    def rows(self, units: Units) -> list[dict[str, Any]]:
        """The buckets in which something was predicted, for JSON."""
        return [
            {"from": bucket.start, "to": bucket.stop - 1, **units.figures(bucket.sums)}
            for bucket in self.buckets
            if bucket.sums.count
        ]
