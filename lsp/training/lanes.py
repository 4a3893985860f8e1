"""What a model remembers of the text before each row of the global batch."""

from __future__ import annotations

import torch

from lsp.checkpointing.memory import LaneMemory
from lsp.data.batches import Share

Memory = dict[str, torch.Tensor]


def size_of(memory: Memory | None) -> int:
    """Numbers in a memory."""
    return sum(value.numel() for value in (memory or {}).values())


class Lanes:
    """The memory of this process's lanes, one for each micro-batch.

    A step reads what the step before left, and writes aside: only when it is done do the lanes
    move on, so a step that is given up has changed nothing. A model without memory has None
    everywhere.

    Args:
        share: Of this process.
        memory: Of its lanes, from a checkpoint; None for nothing.
        device: Of the model.
    """

    def __init__(self, share: Share, memory: Memory | None, device: torch.device) -> None:
        self._share = share
        self._now: list[Memory | None] = [None] * share.accumulation
        self._next: list[Memory | None] = [None] * share.accumulation
        if memory is not None:
            parts = {k: v.to(device).chunk(share.accumulation) for k, v in memory.items()}
            self._now = [{k: v[i] for k, v in parts.items()} for i in range(share.accumulation)]

    def __getitem__(self, micro_batch: int) -> Memory | None:
        """What comes before the rows of a micro-batch."""
        return self._now[micro_batch]

    def keep(self, micro_batch: int, memory: Memory | None) -> None:
        """Takes note of what a micro-batch leaves for the next step."""
        self._next[micro_batch] = memory

    @property
    def finite(self) -> bool:
        """Whether nothing that the step leaves is NaN or infinite; waits for the device."""
        held = [value for memory in self._next if memory is not None for value in memory.values()]
        return not held or bool(torch.stack([value.isfinite().all() for value in held]).all())

    def move_on(self, *, remember: bool) -> None:
        """The step is done: what it left, or nothing, is what the next one reads."""
        empty: list[Memory | None] = [None] * len(self._next)
        self._now, self._next = self._next if remember else empty, list(empty)

    def saved(self) -> LaneMemory | None:
        """What this process adds to a checkpoint.

        Those who share the positions of rows all remember them whole, so one of them saves.
        """
        parts = [memory for memory in self._now if memory]
        if not parts or self._share.sequence_rank > 0:
            return None
        tensors = {key: torch.cat([memory[key] for memory in parts]) for key in parts[0]}
        return LaneMemory(self._share.lanes.start, tensors)
