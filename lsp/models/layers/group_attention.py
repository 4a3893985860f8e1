"""One head of attention within groups of positions, with a bias for each distance.

For Mega (2209.10655, sections 3.2 to 3.5): a group is a document, or a chunk of one. Its attention
makes weights of scores with a softmax, or number by number with Laplace's or the squared ReLU.

Scores exist for a piece of the work at a time, in both passes: the backward computes them again.
What is not of the same group is never multiplied by anything but 0.

Beyond the legend of `lsp.core.batch`: M rows, or chunks of them, that are alike; Q queries of a
piece, W keys that they meet, Z width of queries and keys, U width of values, E distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lsp.models.layers.chunked_attention import compute_dtype, without_autocast
from lsp.models.layers.chunks import documents
from lsp.models.layers.dropout import derive_seed, seeded_dropout

QUERIES = 128
"""Of a piece, at most."""
CPU_SCORES, GPU_SCORES = 2**18, 2**26
"""Of a piece: fixed, as both passes must cut the same pieces."""

LAPLACE_MEAN, LAPLACE_DEVIATION = 0.707107, 0.282095
"""The roots of 1/2 and of 1/(4 pi), with which Laplace's function comes closest to the squared ReLU
(section 3.4), rounded as in the published model."""


@dataclass(frozen=True)
class Piece:
    """Queries and the keys that they may meet.

    Attributes:
        rows: Of the M.
        queries: Positions.
        keys: Positions.
    """

    rows: slice
    queries: slice
    keys: slice


@dataclass(frozen=True)
class Groups:
    """Which positions attend to each other.

    Attributes:
        fold: Where each row is so many positions after each other, alike: M is more than the rows.
        numbers: (M, L) of the groups, padding below 0; None where each of the M is one group.
        counts: (M, L) how many keys each query meets; None where that follows from the place.
        ranges: For each run of `QUERIES` positions, the keys that any of them meets.
        causal: Whether later keys are hidden.
    """

    fold: int
    numbers: torch.Tensor | None
    counts: torch.Tensor | None
    ranges: list[tuple[slice, slice]]
    causal: bool

    @property
    def reach(self) -> int:
        """The largest distance of any piece."""
        return max(
            max(queries.stop - 1 - keys.start, keys.stop - 1 - queries.start)
            for queries, keys in self.ranges
        )

    def pieces(self, rows: int, device_type: str) -> list[Piece]:
        """The work on so many rows."""
        budget = CPU_SCORES if device_type == "cpu" else GPU_SCORES
        found = []
        for queries, keys in self.ranges:
            size = (queries.stop - queries.start) * (keys.stop - keys.start)
            step = max(1, budget // size)
            for start in range(0, rows, step):
                found.append(Piece(slice(start, min(rows, start + step)), queries, keys))
        return found


def make_groups(
    rows: int,
    length: int,
    segment_ids_BL: torch.Tensor | None,
    *,
    chunk: int | None,
    causal: bool,
    device: torch.device,
) -> Groups:
    """The groups of rows by their documents.

    Waits for the device where there are documents, to learn where they lie.

    Args:
        rows: B.
        length: L.
        segment_ids_BL: (B, L) 0 for padding, a document is a run of one other number; None for one
            document per row.
        chunk: Positions of a group at most, counted from the beginning of each document.
        causal: Whether later keys are hidden.
        device: Of the rows.
    """
    if chunk is None or chunk >= length:
        chunk = None
    if segment_ids_BL is None and (chunk is None or length % chunk == 0):
        size = chunk or length
        return Groups(size, None, None, _ranges(size, None, causal), causal)
    if segment_ids_BL is None:
        segment_ids_BL = torch.ones(rows, length, dtype=torch.long, device=device)
    document_BL = documents(segment_ids_BL)
    index_L = torch.arange(length, device=document_BL.device)
    begins_BL = torch.ones_like(document_BL, dtype=torch.bool)
    begins_BL[:, 1:] = document_BL[:, 1:] != document_BL[:, :-1]
    if chunk is not None:
        start_BL = torch.where(begins_BL, index_L, 0).cummax(dim=1).values
        begins_BL = (index_L - start_BL) % chunk == 0
    number_BL = begins_BL.cumsum(dim=1)
    real_BL = segment_ids_BL != 0
    # How many keys there are up to each position, and before its group.
    sums_BL = real_BL.cumsum(dim=1)
    before_BL = torch.where(begins_BL, sums_BL - real_BL.long(), 0).cummax(dim=1).values
    count_BL = sums_BL - before_BL
    if not causal:
        last_BL = torch.cat([begins_BL[:, 1:], torch.ones_like(begins_BL[:, :1])], dim=1)
        most_BL = torch.where(last_BL, sums_BL, length).flip(1).cummin(dim=1).values.flip(1)
        count_BL = most_BL - before_BL
    number_BL = torch.where(real_BL, number_BL, -1)
    fold = length
    if chunk is not None and length % chunk == 0:
        aligned = not bool((begins_BL & (index_L % chunk != 0)).any())
        fold = chunk if aligned else length
    number_ML, count_ML = (x_BL.reshape(-1, fold) for x_BL in (number_BL, count_BL.clamp(min=1)))
    spans = None
    if fold == length:
        spans = _spans(begins_BL)
    return Groups(fold, number_ML, count_ML, _ranges(fold, spans, causal), causal)


def _spans(begins_BL: torch.Tensor) -> tuple[list[int], list[int]]:
    """First and one past the last position of any group that each position is in, in any row."""
    length = begins_BL.shape[1]
    index_L = torch.arange(length, device=begins_BL.device)
    first_BL = torch.where(begins_BL, index_L, 0).cummax(dim=1).values
    next_BL = torch.where(begins_BL, index_L, length)[:, 1:]
    next_BL = F.pad(next_BL, (0, 1), value=length).flip(1).cummin(dim=1).values.flip(1)
    return first_BL.amin(dim=0).tolist(), next_BL.amax(dim=0).tolist()


def _ranges(
    length: int, spans: tuple[list[int], list[int]] | None, causal: bool
) -> list[tuple[slice, slice]]:
    found = []
    for start in range(0, length, QUERIES):
        stop = min(length, start + QUERIES)
        first, last = (0, length) if spans is None else (spans[0][start], spans[1][stop - 1])
        found.append((slice(start, stop), slice(first, stop if causal else last)))
    return found


def group_attention(
    q_BLZ: torch.Tensor,
    k_BLZ: torch.Tensor,
    v_BLU: torch.Tensor,
    bias_E: torch.Tensor,
    groups: Groups,
    *,
    activation: str,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
) -> torch.Tensor:
    """Values of each position's group, as its query weighs their keys.

    Args:
        q_BLZ: (B, L, Z).
        k_BLZ: (B, L, Z).
        v_BLU: (B, L, U).
        bias_E: Added to the score of a key that is d positions after the query, at number
            (E - 1) / 2 + d; as far as groups reach.
        groups: Of these rows.
        activation: `softmax`, whose scores are divided by the root of Z; `laplace` or `relu2`,
            whose scores are divided by how many keys a query meets.
        dropout: Probability of dropping a weight.
        dropout_seed: Decides which; None drops nothing.

    Returns:
        (B, L, U) in the type of v; 0 for padding.
    """
    q_MLZ, k_MLZ, v_MLU = (x.reshape(-1, groups.fold, x.shape[-1]) for x in (q_BLZ, k_BLZ, v_BLU))
    # Pieces have keys of other groups too, which are further away.
    beyond = groups.reach - (len(bias_E) - 1) // 2
    if beyond > 0:
        bias_E = F.pad(bias_E, (beyond, beyond))
    settings = (groups, activation, dropout, dropout_seed)
    out_MLU: torch.Tensor = _GroupAttention.apply(q_MLZ, k_MLZ, v_MLU, bias_E, settings)
    return out_MLU.view(v_BLU.shape)


class _GroupAttention(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        q_MLZ: torch.Tensor,
        k_MLZ: torch.Tensor,
        v_MLU: torch.Tensor,
        bias_E: torch.Tensor,
        settings: tuple[Any, ...],
    ) -> torch.Tensor:
        ctx.settings = settings
        ctx.save_for_backward(q_MLZ, k_MLZ, v_MLU, bias_E)
        out_MLU = torch.empty_like(v_MLU)
        tensors = (q_MLZ, k_MLZ, v_MLU)
        for number, piece in enumerate(settings[0].pieces(len(v_MLU), v_MLU.device.type)):
            parts = [*_parts(tensors, piece), _band(bias_E, piece)]
            out_MLU[piece.rows, piece.queries] = _attend(parts, piece, number, settings)
        return out_MLU

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, grad_MLU: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *tensors, bias_E = ctx.saved_tensors
        wide = compute_dtype(bias_E)
        grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=compute_dtype(x)) for x in tensors)
        grad_bias_E = torch.zeros_like(bias_E, dtype=wide)
        pieces = ctx.settings[0].pieces(len(grad_MLU), grad_MLU.device.type)
        for number, piece in enumerate(pieces):
            parts = [*_parts(tensors, piece), _band(bias_E, piece)]
            leaves = [part.detach().requires_grad_() for part in parts]
            with torch.enable_grad():
                out_MQU = _attend(leaves, piece, number, ctx.settings)
            grad_MQU = grad_MLU[piece.rows, piece.queries].to(out_MQU.dtype)
            found = torch.autograd.grad(out_MQU, leaves, grad_MQU)
            grad_q[piece.rows, piece.queries] = found[0].to(wide)
            grad_k[piece.rows, piece.keys] += found[1]
            grad_v[piece.rows, piece.keys] += found[2]
            _band(grad_bias_E, piece).add_(found[3])
        grads = (grad_q, grad_k, grad_v)
        return *(g.to(x.dtype) for g, x in zip(grads, tensors, strict=True)), grad_bias_E, None


def _parts(tensors: Sequence[torch.Tensor], piece: Piece) -> list[torch.Tensor]:
    q_MLZ, k_MLZ, v_MLU = tensors
    rows, keys = piece.rows, piece.keys
    return [q_MLZ[rows, piece.queries], k_MLZ[rows, keys], v_MLU[rows, keys]]


def _band(bias_E: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The biases of the distances in a piece, from the last query and first key on."""
    middle = (len(bias_E) - 1) // 2
    first = middle + piece.keys.start - (piece.queries.stop - 1)
    return bias_E[first : middle + piece.keys.stop - piece.queries.start]


def _attend(
    parts: Sequence[torch.Tensor], piece: Piece, number: int, settings: tuple[Any, ...]
) -> torch.Tensor:
    q_MQZ, k_MWZ, v_MWU, band_E = parts
    groups, activation, dropout, dropout_seed = settings
    dtype, device = compute_dtype(v_MWU), v_MWU.device
    # Row i of the bias is that of query i: distances fall with the queries.
    bias_QW = band_E.to(dtype).unfold(0, k_MWZ.shape[1], 1).flip(0)
    hidden = None
    if groups.causal:
        query_Q1 = torch.arange(piece.queries.start, piece.queries.stop, device=device)[:, None]
        hidden = torch.arange(piece.keys.start, piece.keys.stop, device=device) > query_Q1
    if groups.numbers is not None:
        numbers = groups.numbers[piece.rows]
        of_query, of_key = numbers[:, piece.queries, None], numbers[:, None, piece.keys]
        other = (of_query != of_key) | (of_query < 0)
        hidden = other if hidden is None else hidden | other
    weights_MQW = weigh(
        torch.bmm(q_MQZ, k_MWZ.transpose(1, 2)).to(dtype),
        bias_QW,
        activation,
        q_MQZ.shape[-1],
        _keys_met(groups, piece, k_MWZ.shape[1], dtype, device),
        hidden,
    )
    seed = None if dropout_seed is None else derive_seed(dropout_seed, number)
    weights_MQW = seeded_dropout(weights_MQW, dropout, seed)
    return torch.bmm(weights_MQW.to(v_MWU.dtype), v_MWU)


def _keys_met(
    groups: Groups, piece: Piece, keys: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | int:
    if groups.counts is not None:
        return groups.counts[piece.rows, piece.queries, None].to(dtype)
    if not groups.causal:
        return keys
    return torch.arange(piece.queries.start + 1, piece.queries.stop + 1, device=device)[:, None]


def weigh(
    products_MQW: torch.Tensor,
    bias_QW: torch.Tensor,
    activation: str,
    size: int,
    count: torch.Tensor | int,
    hidden_MQW: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention weights of what queries and keys multiply to.

    Args:
        products_MQW: Of any leading shape.
        bias_QW: Added to the scores.
        activation: `softmax`, `laplace` or `relu2`.
        size: Z, whose root scores of a softmax are divided by.
        count: How many keys each query meets, which other scores are divided by.
        hidden_MQW: Keys that weigh nothing; None for none.
    """
    if activation == "softmax":
        scores_MQW = products_MQW * size**-0.5 + bias_QW
        if hidden_MQW is not None:  # not infinite: padding meets nothing
            lowest = torch.finfo(scores_MQW.dtype).min
            scores_MQW = scores_MQW.masked_fill(hidden_MQW, lowest)
        weights_MQW = scores_MQW.softmax(-1)
    else:
        weights_MQW = WEIGHTS[activation](products_MQW / count + bias_QW)
    return weights_MQW if hidden_MQW is None else weights_MQW.masked_fill(hidden_MQW, 0.0)


def laplace(scores: torch.Tensor) -> torch.Tensor:
    """The cumulative normal distribution that is like `relu2`, and has no steep slope."""
    return 0.5 * (1 + torch.erf((scores - LAPLACE_MEAN) / (LAPLACE_DEVIATION * math.sqrt(2))))


WEIGHTS = {"laplace": laplace, "relu2": lambda scores: F.relu(scores).square()}
