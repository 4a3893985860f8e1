"""The batch that every architecture consumes.

Shape legend, used in names across the project (`x_BLD`, `q_BNLH`):
    B  rows in a batch            L  positions in a row (the sequence length)
    D  hidden size                F  feed-forward size        V  vocabulary size
    N  attention heads            H  size of one head         R  hashing rounds
    C  chunks in a row            K  positions in one chunk
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

IGNORE_INDEX = -100
"""Label of a position where nothing is predicted."""


@dataclass(frozen=True)
class Batch:
    """Packed rows, ready for a model.

    Attributes:
        input_ids: (B, L) token ids.
        labels: (B, L) what position t has to predict, already shifted for causal objectives;
            `IGNORE_INDEX` where nothing is predicted.
        segment_ids: (B, L) 0 for padding, 1.. for the number of the document in its row.
        position_ids: (B, L) position of the token inside its document.
        extra: What an objective gives beside these, by the name of the model's argument: each with
            the rows first, such as `decoder_input_ids` (B, T). Where there is a decoder, `labels`
            are what it predicts, (B, T). A row without labels predicts nothing at all, whatever
            `extra` has for it.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    segment_ids: torch.Tensor
    position_ids: torch.Tensor
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields by name, as keyword arguments of a model's `forward`."""
        return {
            "input_ids": self.input_ids,
            "labels": self.labels,
            "segment_ids": self.segment_ids,
            "position_ids": self.position_ids,
            **self.extra,
        }

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start:stop` of the batch, without a copy."""
        return self._each(lambda tensor: tensor[start:stop])

    def positions(self, start: int, stop: int) -> Batch:
        """Positions `start:stop` of every row, each tensor contiguous."""
        assert not self.extra, "only tensors of one value for each position can be shared"
        return self._each(lambda tensor: tensor[:, start:stop].contiguous())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(
            change(self.input_ids),
            change(self.labels),
            change(self.segment_ids),
            change(self.position_ids),
            {name: change(tensor) for name, tensor in self.extra.items()},
        )

    @property
    def num_predicted(self) -> torch.Tensor:
        """How many positions are predicted (int64 scalar)."""
        return (self.labels != IGNORE_INDEX).sum()

    @property
    def num_padding(self) -> torch.Tensor:
        """How many positions are padding (int64 scalar)."""
        return (self.segment_ids == 0).sum()


def positions_from_segments(segment_ids: torch.Tensor) -> torch.Tensor:
    """Positions that restart at 0 with every document.

    Padding continues the count of the document before it, so that a padded document has the
    positions it would have alone.

    Args:
        segment_ids: (B, L) document numbers, 0 for padding.

    Returns:
        (B, L) int64 positions.
    """
    index_L = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = (segment_ids[:, 1:] != segment_ids[:, :-1]) & (segment_ids[:, 1:] != 0)
    start_of = torch.where(starts, index_L, 0).cummax(dim=1).values
    return index_L - start_of
