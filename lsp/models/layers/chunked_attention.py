"""What LSH and local attention share: document bookkeeping and windows of neighbouring chunks."""

from __future__ import annotations

import torch

from lsp.core.errors import require

SELF_SCORE = -1e5
"""Score of a token with itself in LSH attention (2001.04451, section 2): the last resort."""
MASKED_SCORE = -1e9
"""Score of a key that must not be seen."""


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


def check_chunks(name: str, sequence_length: int, chunk_length: int) -> None:
    """Refuses a sequence that is longer than one chunk and not a whole number of chunks."""
    below = sequence_length // chunk_length * chunk_length
    require(
        sequence_length <= chunk_length or below == sequence_length,
        f"{name}={chunk_length} does not divide the sequence length {sequence_length}: "
        f"use a length of {below} or {below + chunk_length}, or a chunk length that divides it",
    )


def windows(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Joins each chunk with its neighbours on a ring: (..., C, K, *) -> (..., C, W, *).

    `x` has the chunks in dimension 2 and the positions of a chunk in dimension 3.
    """
    if before == 0 and after == 0:
        return x
    return torch.cat([x.roll(-shift, dims=2) for shift in range(-before, after + 1)], dim=3)
