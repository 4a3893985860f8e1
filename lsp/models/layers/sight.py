"""What the queries of a row see of its keys, and of those that are remembered before them.

Made once for a pass and used by all of its layers: for every block of queries, the run of keys
that any of them sees, in parts small enough for a core's cache, and whether documents hide some.

Beyond the legend of `lsp.core.batch`: M positions are remembered, E = M + L keys in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from lsp.models.layers.chunks import CPU_BLOCK, GPU_BLOCK

CPU_QUERIES, GPU_QUERIES = 128, 512  # 64 take a tenth longer on a CPU, in bf16 a quarter
GPU_KEYS = 4096


@dataclass(frozen=True)
class BlockSize:
    """How much is computed together, at most.

    Attributes:
        heads: Of a row.
        queries: Of each.
        keys: That each of them meets.
    """

    heads: int
    queries: int
    keys: int


def block_size(device: torch.device, heads: int = 1) -> BlockSize:
    """What fits a core's cache, one head at a time; on a GPU what a fixed budget holds."""
    if device.type == "cpu":
        return BlockSize(1, CPU_QUERIES, CPU_BLOCK // CPU_QUERIES)
    together = GPU_BLOCK // (GPU_QUERIES * GPU_KEYS)
    return BlockSize(max(1, min(heads, together)), GPU_QUERIES, GPU_KEYS)


def largest_block(
    length: int, memory: int, reach: int | None, heads: int, device: torch.device
) -> BlockSize:
    """The largest block of a pass."""
    size = block_size(device, heads)
    queries = min(size.queries, length)
    keys = memory + length if reach is None else min(memory + length, reach + queries)
    return BlockSize(size.heads, queries, min(size.keys, keys))


@dataclass(frozen=True)
class Run:
    """A block of queries and the keys that they see.

    Attributes:
        first: The first query.
        stop: One past the last.
        parts: First and one past the last key of each part, from left to right.
        masked: Whether some of these keys are of other documents than some of these queries.
    """

    first: int
    stop: int
    parts: tuple[tuple[int, int], ...]
    masked: bool


@dataclass(frozen=True)
class Sight:
    """Which keys each query sees: of its own document, and not too far away.

    Attributes:
        length: L, the queries, which are the last keys.
        memory: M.
        reach: Largest distance that is seen; None for any.
        documents: (B, E) document of each key, -1 for what nobody sees; None where all are of
            one. The output of a query with -1 is 0.
        rows: The blocks of each row; one list for all where there is one document.
        causal: Whether later keys are hidden.
    """

    length: int
    memory: int
    reach: int | None
    documents: torch.Tensor | None
    rows: tuple[tuple[Run, ...], ...]
    causal: bool = True

    def runs(self, row: int) -> tuple[Run, ...]:
        """The blocks of a row."""
        return self.rows[row if self.documents is not None else 0]


def make_sight(
    length: int,
    memory: int,
    *,
    reach: int | None,
    device: torch.device,
    document_BE: torch.Tensor | None = None,
    causal: bool = True,
) -> Sight:
    """Cuts rows into blocks.

    Args:
        length: L.
        memory: M.
        reach: Largest distance that is seen; None for any.
        device: Where attention will be computed; a GPU wants larger blocks.
        document_BE: (B, E) document of each key, -1 for what nobody sees; None where all are of
            one.
        causal: Whether later keys are hidden.
    """
    assert causal or reach is None, "a reach counts back from the query"
    size = block_size(device)
    cut = partial(_runs, length, memory, reach, size.queries, size.keys, causal)
    if document_BE is None:
        return Sight(length, memory, reach, None, (cut(None),), causal)
    # Waits for a GPU, once for all layers.
    rows = tuple(cut(document_E) for document_E in document_BE.cpu().numpy())
    return Sight(length, memory, reach, document_BE, rows, causal)


def _runs(
    length: int,
    memory: int,
    reach: int | None,
    queries: int,
    keys: int,
    causal: bool,
    document_E: np.ndarray | None,
) -> tuple[Run, ...]:
    found = []
    for first in range(0, length, queries):
        stop = min(first + queries, length)
        start = 0 if reach is None else max(0, memory + first - reach)
        end, masked = memory + (stop if causal else length), False
        if document_E is not None:
            # What lies before and after the keys of these documents is not even looked at.
            own = np.unique(document_E[memory + first : memory + stop])
            seen = np.isin(document_E[start:end], own[-1:] if own[-1] < 0 else own[own >= 0])
            start, end = start + int(seen.argmax()), end - int(seen[::-1].argmax())
            masked = len(own) > 1 or bool((document_E[start:end] != own[0]).any())
        found.append(Run(first, stop, tuple(_parts(start, end, keys)), masked))
    return tuple(found)


def _parts(start: int, end: int, keys: int) -> Sequence[tuple[int, int]]:
    """Runs of keys, all but the first as long as possible."""
    edges = [*range(end, start, -keys), start]
    return [(left, right) for right, left in pairwise(edges)][::-1]
