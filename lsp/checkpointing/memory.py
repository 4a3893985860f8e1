"""What a model remembers of the lanes of a step, in a checkpoint: any process reads its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from lsp.checkpointing.background import Part
from lsp.checkpointing.files import save_tensors
from lsp.core.errors import UserError

FIRST_LANE = "first_lane"


@dataclass(frozen=True)
class LaneMemory:
    """What is remembered of some neighbouring lanes.

    Attributes:
        first: Number of the first lane, within the global batch.
        tensors: Each with the lanes as its first dimension.
    """

    first: int
    tensors: Mapping[str, torch.Tensor]

    def part(self, rank: int) -> Part:
        """The file of the process `rank`, of copies in host memory."""
        copies = {k: v.to("cpu", copy=True).contiguous() for k, v in self.tensors.items()}
        metadata = {FIRST_LANE: str(self.first)}
        return f"memory-{rank:05d}.safetensors", partial(_write, copies, metadata)


def _write(tensors: dict[str, torch.Tensor], metadata: dict[str, str], path: Path) -> None:
    save_tensors(tensors, path, metadata)


def read_memory(folder: Path, lanes: range) -> dict[str, torch.Tensor] | None:
    """What was remembered of some lanes, by however many processes that was written.

    Args:
        folder: The checkpoint.
        lanes: Neighbouring ones.

    Returns:
        Tensors with the lanes as their first dimension; None where nothing was remembered.

    Raises:
        UserError: There is a memory, but not of all of these lanes.
    """
    found: dict[int, dict[str, torch.Tensor]] = {}
    for path in folder.glob("memory-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            first = int(file.metadata()[FIRST_LANE])
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            count = next(iter(slices.values())).get_shape()[0]
            wanted = range(max(lanes.start, first), min(lanes.stop, first + count))
            if wanted:
                place = slice(wanted.start - first, wanted.stop - first)
                found[wanted.start] = {key: part[place] for key, part in slices.items()}
    if not found and not any(folder.glob("memory-*.safetensors")):
        return None
    parts = [found[start] for start in sorted(found)]
    whole = {key: torch.cat([part[key] for part in parts]) for key in (parts[0] if parts else ())}
    held = len(next(iter(whole.values()))) if whole else 0
    if held != len(lanes):
        raise UserError(
            f"{folder} holds the memory of {held} of the lanes {lanes.start} to {lanes.stop - 1}: "
            "it belongs to another tokens_per_step; begin a new run_name"
        )
    return whole
