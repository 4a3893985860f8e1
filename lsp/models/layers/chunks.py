"""How chunks of a row lie in memory: windows of neighbours, documents, blocks, buffers.

Beyond the legend of `lsp.core.batch`: T heads computed together, M chunks of a block over its T
heads, W keys seen by a chunk, E positions of a block's chunks and their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from lsp.core.errors import require

CPU_BLOCK = 2**18  # scores per block: measured best on cores with 1 MB of L2 cache
GPU_BLOCK = 2**27  # fixed, not from free memory: both passes must cut the same blocks


class Workspace:
    """Buffers that every block uses again, by name, so that they stay in the cache."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self.views: dict[tuple[str, torch.dtype, tuple[int, ...]], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A buffer with undefined contents, valid until the same name is taken again."""
        view = self.views.get((name, dtype, shape))
        if view is not None:
            return view
        size = prod(shape)
        buffer = self.buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=self.device)
            self.buffers[name, dtype] = buffer
            self.views = {key: x for key, x in self.views.items() if key[:2] != (name, dtype)}
        self.views[name, dtype, shape] = buffer[:size].view(shape)
        return self.views[name, dtype, shape]


@dataclass(frozen=True)
class Window:
    """What a chunk sees: itself and some chunks before and after, on a ring."""

    chunk_length: int
    before: int
    after: int

    @property
    def size(self) -> int:
        return self.chunk_length * (1 + self.before + self.after)

    @property
    def outer(self) -> int:
        """Positions around some chunks that only their neighbours hold."""
        return self.chunk_length * (self.before + self.after)

    def ring(
        self, length: int, device: torch.device, *, first: int = 0, row_length: int | None = None
    ) -> torch.Tensor:
        """Positions first..first+length-1 of a row and the neighbours on its ring: (E,) int64."""
        start, stop = -self.before * self.chunk_length, length + self.after * self.chunk_length
        return torch.arange(first + start, first + stop, device=device) % (row_length or length)

    def span(self, first: int, last: int) -> slice:
        """Where on the ring chunks first..last-1 and their neighbours lie."""
        return slice(
            first * self.chunk_length, (last + self.before + self.after) * self.chunk_length
        )

    def own(self, x_TEX: torch.Tensor) -> torch.Tensor:
        """The chunks themselves, without the outer neighbours: (T, C * K, ...)."""
        start = self.before * self.chunk_length
        return x_TEX[:, start : x_TEX.shape[1] - self.after * self.chunk_length]

    def around(self, x_TEX: torch.Tensor) -> torch.Tensor:
        """The outer neighbours, those before and then those after: (T, `outer`, ...)."""
        start = self.before * self.chunk_length
        stop = x_TEX.shape[1] - self.after * self.chunk_length
        return torch.cat([x_TEX[:, :start], x_TEX[:, stop:]], dim=1)

    def keys(self, x_TEH: torch.Tensor, name: str, workspace: Workspace) -> torch.Tensor:
        """What each chunk sees: (M, W, H).

        A view that overlaps itself where the matrix product takes one at full speed (one head,
        fp32), else a copy in the buffer of that name.
        """
        windows_TCWH = x_TEH.unfold(1, self.size, self.chunk_length).transpose(-1, -2)
        if len(x_TEH) == 1 and x_TEH.dtype.itemsize >= 4:
            return windows_TCWH[0]
        copy = workspace.take(name, tuple(windows_TCWH.shape), x_TEH.dtype)
        return copy.copy_(windows_TCWH).flatten(0, 1)

    def query_codes(self, x_TE: torch.Tensor) -> torch.Tensor:
        """One number per query: (T, C, K, 1)."""
        return self.own(x_TE).unflatten(1, (-1, self.chunk_length))[..., None]

    def key_codes(self, x_TE: torch.Tensor) -> torch.Tensor:
        """One number per key seen by a chunk: (T, C, 1, W)."""
        return x_TE.unfold(1, self.size, self.chunk_length)[:, :, None]

    def by_chunk(self, x_TLH: torch.Tensor, name: str, workspace: Workspace) -> torch.Tensor:
        """(T, C * K, H) to (M, K, H), contiguous, in the buffer of that name."""
        shape = (x_TLH.shape[0] * x_TLH.shape[1] // self.chunk_length, self.chunk_length)
        copy = workspace.take(name, tuple(x_TLH.shape), x_TLH.dtype).copy_(x_TLH)
        return copy.view(*shape, x_TLH.shape[-1])

    def add_windows(self, ring_TEH: torch.Tensor, grad_MWH: torch.Tensor, seen: int) -> None:
        """Adds the gradients of what each chunk saw to where it came from.

        Only the first `seen` chunks of `ring_TEH` have been written before.
        """
        heads, width = ring_TEH.shape[0], self.chunk_length
        chunks_TCKH = ring_TEH.unflatten(1, (-1, width))
        grad_TCWH = grad_MWH.view(heads, -1, *grad_MWH.shape[1:])
        count = grad_TCWH.shape[1]
        first = grad_TCWH[:, :, :width]
        old = min(seen, count)
        chunks_TCKH[:, :old] += first[:, :old]
        chunks_TCKH[:, old:count] = first[:, old:]
        chunks_TCKH[:, max(seen, count) :] = 0
        for shift in range(1, 1 + self.before + self.after):
            part = grad_TCWH[:, :, shift * width : (shift + 1) * width]
            chunks_TCKH[:, shift : shift + count] += part


@dataclass(frozen=True)
class Settings:
    """What does not differ from row to row.

    Attributes:
        window: What a chunk sees.
        causal: Whether later keys are hidden.
        dropout: Probability of dropping an attention weight.
        dropout_seed: Decides which; None where nothing is dropped.
        first: Position of the first query in its row.
        row_length: Positions of a row; None where the queries are all of it.
    """

    window: Window
    causal: bool
    dropout: float
    dropout_seed: int | None
    first: int = 0
    row_length: int | None = None


def check_chunks(name: str, sequence_length: int, chunk_length: int) -> None:
    """Refuses a sequence that is longer than one chunk and not a whole number of chunks."""
    below = sequence_length // chunk_length * chunk_length
    require(
        sequence_length <= chunk_length or below == sequence_length,
        f"{name}={chunk_length} does not divide the sequence length {sequence_length}: "
        f"use a length of {below} or {below + chunk_length}, or a chunk length that divides it",
    )


def block_sizes(device: torch.device, heads: int, chunks: int, window: Window) -> tuple[int, int]:
    """How many heads are computed together, and how many chunks of each.

    On a CPU one head and what fits its cache; elsewhere as much as a fixed budget holds.
    """
    per_chunk = window.chunk_length * window.size
    if device.type == "cpu":
        return 1, max(1, min(chunks, CPU_BLOCK // per_chunk))
    chunks = max(1, min(chunks, GPU_BLOCK // per_chunk))
    return max(1, min(heads, GPU_BLOCK // (per_chunk * chunks))), chunks


def documents(segment_ids_BL: torch.Tensor) -> torch.Tensor:
    """Numbers the documents of each row 0.. in row order; padding belongs to the one before it.

    Padding in front of the first document belongs to that document, so a row with one document
    and padding anywhere has a single number.

    Args:
        segment_ids_BL: (B, L) 0 for padding, a document is a run of one other number.

    Returns:
        (B, L) int32, never decreasing along a row.
    """
    index_L = torch.arange(segment_ids_BL.shape[1], device=segment_ids_BL.device)
    last_real_BL = torch.where(segment_ids_BL != 0, index_L, -1).cummax(dim=1).values
    first_real_B1 = (segment_ids_BL != 0).int().argmax(dim=1, keepdim=True)
    filled_BL = segment_ids_BL.gather(1, torch.where(last_real_BL < 0, first_real_B1, last_real_BL))
    starts_BL = torch.zeros_like(segment_ids_BL, dtype=torch.int32)
    starts_BL[:, 1:] = filled_BL[:, 1:] != filled_BL[:, :-1]
    return starts_BL.cumsum(dim=1, dtype=torch.int32)
