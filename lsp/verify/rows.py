"""The rows that a certificate is made on: documents of many places and lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lsp.core.batch import IGNORE_INDEX, Batch, positions_from_segments

Pieces = Sequence[tuple[int, float]]
"""Numbers of documents (0 is padding) and where each ends, as a share of the row."""

ACROSS_CHUNKS: Pieces = ((1, 0.29), (2, 0.36), (0, 0.43), (3, 0.89), (0, 1.0))
"""Documents that end inside chunks, one of them short, with padding between and behind."""
ON_BOUNDARIES: Pieces = ((1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0))
"""Documents that fill the chunks of most chunk lengths."""
WHOLE: Pieces = ((1, 1.0),)
"""One document as long as the row."""
PADDED: Pieces = ((1, 0.79), (0, 1.0))
"""One document and padding."""
SHORT: Pieces = ((1, 0.43), (2, 0.84), (0, 1.0))
"""Two documents and padding: what little has to suffice before a training."""

BEFORE: Pieces = ((1, 0.45), (2, 0.86), (3, 1.0))
"""The row before another: it ends within a document so short that a memory holds others too."""


def make_rows(
    kinds: Sequence[Pieces], length: int, vocab_size: int, device: torch.device, seed: int = 1
) -> Batch:
    """Rows of random tokens that predict nothing, one of each kind: (B, L)."""
    generator = torch.Generator().manual_seed(seed)
    segments_BL = torch.zeros(len(kinds), length, dtype=torch.int64)
    for row_L, pieces in zip(segments_BL, kinds, strict=True):
        start = 0
        for number, share in pieces:
            stop = round(share * length)
            row_L[start:stop] = number
            start = stop
    ids_BL = torch.randint(0, vocab_size, segments_BL.shape, generator=generator)
    return Batch(
        input_ids=ids_BL,
        labels=torch.full_like(ids_BL, IGNORE_INDEX),
        segment_ids=segments_BL,
        position_ids=positions_from_segments(segments_BL),
    ).to(device)


def later_parts(segment_ids_BL: torch.Tensor, share: float) -> torch.Tensor:
    """The positions of each document behind a share of it: (B, L) bool.

    At least one position lies before them and one among them. They begin at odd positions of the
    row where there is a choice, so that no chunk of an even length begins with them.
    """
    later_BL = torch.zeros_like(segment_ids_BL, dtype=torch.bool)
    for row_L, later_L in zip(segment_ids_BL, later_BL, strict=True):
        for number in torch.unique(row_L).tolist():
            places = (row_L == number).nonzero().flatten()
            if number == 0 or len(places) < 2:
                continue
            cut = min(max(1, int(share * len(places))), len(places) - 1)
            if places[cut] % 2 == 0 and cut + 1 < len(places):
                cut += 1
            later_L[places[cut:]] = True
    return later_BL
