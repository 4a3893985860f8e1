"""Attention whose keys and values know how far away they are, up to some distance.

With r_d the vector of the relative position d = j - i, clipped to -m .. m, query i gives key j the
score q_i (k_j + r_d) / sqrt(H) and gets from it the value v_j + r_d (Shaw et al., 1803.02155,
section 3.2; NEZHA, 1909.00204, section 2.2, where r is a fixed table of sinusoids).

No vector of a pair of positions is ever made. A query has 2m + 1 products with the table, of which
each key takes one; and what relative positions add to its output is the table weighted by how much
of the softmax lies at each of them. Both are moved between relative positions and keys by a view
with other strides (`hiding.shifted`), and beyond m by one number for all keys. Scores exist for one
block at a time, in both passes, as in the other kernels (flash attention, 2205.14135).

The legend is that of `lsp.core.batch`, of `chunks` and of `sight`; P = 2m + 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lsp.models.layers.chunked_attention import (
    LN2,
    LOG2E,
    Dropout,
    cast,
    compute_dtype,
    without_autocast,
)
from lsp.models.layers.hiding import BlockWorkspace, Hiding, add_product, shifted
from lsp.models.layers.sight import Run, Sight, block_size


def sinusoids(reach: int, size: int, device: torch.device | None = None) -> torch.Tensor:
    """The fixed vectors of relative positions -m .. m: (2m + 1, H), fp32.

    Sines in the even, cosines in the odd places (1909.00204, section 2.2), of the number of the
    row, as in the published weights.

    Args:
        reach: m.
        size: H, even.
        device: Where they are.
    """
    place_P1 = torch.arange(2 * reach + 1, dtype=torch.float32, device=device)[:, None]
    pair = torch.arange(0, size, 2, dtype=torch.float32, device=device)
    angles = place_P1 * torch.exp(pair * (-math.log(10000.0) / size))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def clipped_attention(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    table_PH: torch.Tensor,
    sight: Sight,
    *,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
) -> torch.Tensor:
    """Attention to keys and values of the same document, by content and relative position.

    Args:
        q_BNLH: (B, N, L, H) queries, as projected: the scale 1/sqrt(H) is applied here.
        k_BNLH: (B, N, L, H) keys.
        v_BNLH: (B, N, L, H) values.
        table_PH: (2m + 1, H) vectors of relative positions -m .. m, which learn nothing.
        sight: Which keys each query sees; without a memory.
        dropout: Probability of dropping an attention weight.
        dropout_seed: Required where dropout > 0: the same seed drops the same weights.

    Returns:
        (B, N, L, H) attention output in the dtype of the values, 0 for what nobody sees.
    """
    assert sight.memory == 0
    assert not table_PH.requires_grad
    inputs = (q_BNLH, k_BNLH, v_BNLH, table_PH.to(q_BNLH.dtype))
    out_BNLH: torch.Tensor = _ClippedAttention.apply(*inputs, sight, dropout, dropout_seed)
    return out_BNLH


@dataclass(frozen=True)
class _Near:
    """Which keys of a part are at which relative positions of the queries of a block.

    Columns before `first` are at -m or before it for every query, those from `stop` on at m or
    after it. Between them, a diagonal of the block has one relative position.

    Attributes:
        first: Of the columns of the part.
        stop: Of the columns of the part.
        low: How many diagonals are at -m or before it.
        high: The first diagonal at m or after it.
        place: Row of the table of diagonal `low`.
    """

    first: int
    stop: int
    low: int
    high: int
    place: int

    @staticmethod
    def of(run: Run, part: tuple[int, int], reach: int) -> _Near:
        left, right = part
        width = right - left
        first = min(max(run.first - reach - left + 1, 0), width)
        stop = min(max(run.stop - 1 + reach - left, first), width)
        # The first diagonal has the last query and the first of these columns.
        start = left + first - (run.stop - 1)
        diagonals = run.stop - run.first + stop - first - 1
        low = min(max(1 - reach - start, 0), diagonals)
        high = min(max(reach - start, low), diagonals)
        return _Near(first, stop, low, high, start + low + reach)


def _spread(
    scores: torch.Tensor, by_place: torch.Tensor, near: _Near, work: BlockWorkspace
) -> None:
    """Adds to each key's entry (T, K, W) the query's entry for its relative position (T, K, P)."""
    scores[..., : near.first].add_(by_place[..., :1])
    scores[..., near.stop :].add_(by_place[..., -1:])
    inner = scores[..., near.first : near.stop]
    if not inner.shape[-1]:
        return
    wide = _wide(inner, work)
    wide[..., : near.low] = by_place[..., :1]
    wide[..., near.low : near.high] = by_place[..., near.place :][..., : near.high - near.low]
    wide[..., near.high :] = by_place[..., -1:]
    inner.add_(shifted(wide, tuple(inner.shape)))


def _gather(
    by_place: torch.Tensor, weights: torch.Tensor, near: _Near, work: BlockWorkspace
) -> None:
    """The way back of `_spread`: adds up the entries of keys by relative position."""
    first, last = by_place[..., :1], by_place[..., -1:]
    first += weights[..., : near.first].sum(-1, keepdim=True)
    last += weights[..., near.stop :].sum(-1, keepdim=True)
    inner = weights[..., near.first : near.stop]
    if not inner.shape[-1]:
        return
    wide = _wide(inner, work)
    wide[..., : inner.shape[1] - 1] = wide[..., inner.shape[2] :] = 0
    shifted(wide, tuple(inner.shape)).copy_(inner)
    first += wide[..., : near.low].sum(-1, keepdim=True)
    last += wide[..., near.high :].sum(-1, keepdim=True)
    by_place[..., near.place : near.place + near.high - near.low] += wide[..., near.low : near.high]


def _wide(inner: torch.Tensor, work: BlockWorkspace) -> torch.Tensor:
    heads, count, width = inner.shape
    return work.take("wide", (heads, count, count + width - 1), inner.dtype)


class _Heads:
    """Some heads of a row, block by block."""

    def __init__(
        self,
        inputs: tuple[torch.Tensor, ...],
        row: int,
        heads: slice,
        sight: Sight,
        work: BlockWorkspace,
    ) -> None:
        q, k, v, self.table_PH = inputs
        self.q_TLH, self.k_TLH, self.v_TLH = q[row, heads], k[row, heads], v[row, heads]
        self.work, self.dtype = work, compute_dtype(q)
        self.reach, self.scale = len(self.table_PH) // 2, q.shape[-1] ** -0.5
        self.hiding = Hiding(sight, row, self.dtype, work)

    def queries(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries scaled to scores in base 2, (T, K, H), and their products with the table."""
        own = self.q_TLH[:, run.first : run.stop]
        q = self.work.take("q", tuple(own.shape), own.dtype)
        torch.mul(own, self.scale * LOG2E, out=q)
        return q, self.met(q, "met")

    def met(self, x_TKH: torch.Tensor, name: str) -> torch.Tensor:
        """Products with the table: (T, K, P), valid until the same name is asked for again."""
        shape = (*x_TKH.shape[:2], len(self.table_PH))
        product = self.work.take(f"{name}, product", shape, x_TKH.dtype)
        torch.matmul(x_TKH, self.table_PH.T, out=product)
        return cast(product, self.dtype, name, self.work)

    def by_place(self, name: str, run: Run) -> torch.Tensor:
        """Room for sums by relative position: (T, K, P), zeros."""
        shape = (len(self.q_TLH), run.stop - run.first, len(self.table_PH))
        return self.work.take(name, shape, self.dtype).zero_()

    def placed(self, by_place: torch.Tensor) -> torch.Tensor:
        """The table weighted by sums by relative position: (T, K, H)."""
        weights = cast(by_place, self.table_PH.dtype, "weighted", self.work)
        return weights @ self.table_PH

    def scores(
        self, run: Run, part: tuple[int, int], q: torch.Tensor, met: torch.Tensor
    ) -> torch.Tensor:
        """Scores in base 2, masked: (T, K, W), valid until the next call."""
        scores = self.work.take("scores", (*q.shape[:2], part[1] - part[0]), self.dtype)
        self.product(scores, q, self.k_TLH, part)
        _spread(scores, met, _Near.of(run, part, self.reach), self.work)
        self.hiding.hide(scores, run, part)
        return scores

    def product(
        self, out: torch.Tensor, x_TKH: torch.Tensor, y_TLH: torch.Tensor, part: tuple[int, int]
    ) -> None:
        """Writes products with the keys or values of a part: (T, K, W)."""
        y_THW = y_TLH[:, part[0] : part[1]].transpose(1, 2)
        if x_TKH.dtype == out.dtype:
            torch.bmm(x_TKH, y_THW, out=out)
        else:
            half = self.work.take("half", tuple(out.shape), x_TKH.dtype)
            out.copy_(torch.bmm(x_TKH, y_THW, out=half))


class _ClippedAttention(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, q_BNLH: torch.Tensor, *arguments: Any) -> torch.Tensor:
        k_BNLH, v_BNLH, table_PH, sight, rate, seed = arguments
        inputs = (q_BNLH, k_BNLH, v_BNLH, table_PH)
        out_BNLH = torch.empty_like(v_BNLH)
        base_BNL = torch.empty(q_BNLH.shape[:3], dtype=compute_dtype(q_BNLH), device=q_BNLH.device)
        dropout, work = Dropout(rate, seed, q_BNLH.device), BlockWorkspace(q_BNLH.device)
        for row, heads, unit in _units(inputs, sight, work, dropout):
            for run in sight.runs(row):
                out, base = _block_forward(unit, run, dropout)
                silent_K1 = unit.hiding.silent(run)
                if silent_K1 is not None:
                    out = out.masked_fill(silent_K1, 0.0)
                out_BNLH[row, heads, run.first : run.stop] = out
                base_BNL[row, heads, run.first : run.stop] = base[..., 0]
        ctx.sight, ctx.rate, ctx.seed = sight, rate, seed
        ctx.save_for_backward(*inputs, base_BNL, out_BNLH)
        return out_BNLH

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad_BNLH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, base_BNL, out_BNLH = ctx.saved_tensors
        sight, device = ctx.sight, grad_BNLH.device
        grads = [torch.empty_like(x) for x in inputs[:3]]
        dropout, work = Dropout(ctx.rate, ctx.seed, device), BlockWorkspace(device)
        for row, heads, unit in _units(tuple(inputs), sight, work, dropout):
            writer = _Gradients(unit)
            for run in sight.runs(row):
                here = slice(run.first, run.stop)
                grad = work.take("grad", tuple(unit.q_TLH[:, here].shape), grad_BNLH.dtype)
                grad.copy_(grad_BNLH[row, heads, here])
                silent_K1 = unit.hiding.silent(run)
                if silent_K1 is not None:
                    grad.masked_fill_(silent_K1, 0.0)
                out = out_BNLH[row, heads, here].to(unit.dtype)
                delta = torch.linalg.vecdot(grad.to(unit.dtype), out)
                writer.block(run, grad, base_BNL[row, heads, here, None], delta[..., None], dropout)
            writer.write(grads, row, heads)
        return *grads, None, None, None, None


class _Gradients:
    """Gradients of some heads of a row, added up block by block.

    Attributes:
        totals: (T, L, H) those of queries, keys and values.
    """

    def __init__(self, unit: _Heads) -> None:
        self.unit = unit
        shape, device = unit.k_TLH.shape, unit.work.device
        self.totals = tuple(torch.zeros(shape, dtype=unit.dtype, device=device) for _ in "qkv")

    def block(
        self,
        run: Run,
        grad: torch.Tensor,
        base: torch.Tensor,
        delta: torch.Tensor,
        dropout: Dropout,
    ) -> None:
        """Differentiates a block: see `chunked_attention.block_backward`."""
        unit, work, half = self.unit, self.unit.work, grad.dtype
        grad_q, grad_k, grad_v = self.totals
        q, met = unit.queries(run)
        met_grad = unit.met(grad, "met by the gradient")
        of_places = unit.by_place("gradients by place", run)
        own_grad_q = grad_q[:, run.first : run.stop]
        for left, right in run.parts:
            part, near = (left, right), _Near.of(run, (left, right), unit.reach)
            weights = unit.scores(run, part, q, met).sub_(base).exp2_()
            shape = tuple(weights.shape)
            grads = work.take("weights", shape, unit.dtype)
            unit.product(grads, grad, unit.v_TLH, part)
            _spread(grads, met_grad, near, work)
            kept = weights
            if dropout.dropped:
                # With Z the kept and scaled entries: dV = (P Z)' dO and dS = P (Z dP - delta).
                kept = work.take("kept", shape, unit.dtype).fill_(1)
                dropout.apply(kept, work)
                grads.mul_(kept)
                kept.mul_(weights)
            kept = cast(kept, half, "half", work)
            add_product(grad_v[:, left:right], kept.transpose(1, 2), grad, work)
            grads.sub_(delta).mul_(weights)
            _gather(of_places, grads, near, work)
            grads = cast(grads, half, "half", work)
            add_product(own_grad_q, grads, unit.k_TLH[:, left:right], work)
            add_product(grad_k[:, left:right], grads.transpose(1, 2), q, work)
        own_grad_q.add_(unit.placed(of_places))

    def write(self, grads: list[torch.Tensor], row: int, heads: slice) -> None:
        """Writes those of queries, keys and values."""
        grad_q, grad_k, _ = self.totals
        grad_q.mul_(self.unit.scale)
        grad_k.mul_(LN2)  # of products with queries that are scaled, to base 2
        for total, whole in zip(self.totals, grads, strict=True):
            whole[row, heads] = total


def _units(
    inputs: tuple[torch.Tensor, ...], sight: Sight, work: BlockWorkspace, dropout: Dropout
) -> Iterator[tuple[int, slice, _Heads]]:
    """Groups of heads of each row; the numbers of the dropout begin anew with each."""
    batch, num_heads = inputs[0].shape[:2]
    step = block_size(work.device, num_heads).heads
    for first in range(0, num_heads, step):
        heads = slice(first, min(first + step, num_heads))
        for row in range(batch):
            dropout.restart(heads.start * batch + row)
            yield row, heads, _Heads(inputs, row, heads, sight, work)


def _block_forward(unit: _Heads, run: Run, dropout: Dropout) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of a block of queries, (T, K, H), and the logarithm of each sum, (T, K, 1)."""
    work, dtype = unit.work, unit.v_TLH.dtype
    q, met = unit.queries(run)
    of_places = unit.by_place("weights by place", run)
    out = work.take("sum", tuple(q.shape), unit.dtype).zero_()
    highest = total = out[..., :1]
    for number, part in enumerate(run.parts):
        weights = unit.scores(run, part, q, met)
        top = weights.amax(-1, keepdim=True)
        if number:
            top = torch.maximum(top, highest)
        part_total = weights.sub_(top).exp2_().sum(-1, keepdim=True)
        if number:
            fade = (highest - top).exp2_()
            out.mul_(fade)
            of_places.mul_(fade)
            part_total.addcmul_(total, fade)
        highest, total = top, part_total
        dropout.apply(weights, work)
        _gather(of_places, weights, _Near.of(run, part, unit.reach), work)
        weights = cast(weights, dtype, "half", work)
        add_product(out, weights, unit.v_TLH[:, part[0] : part[1]], work)
    return out.add_(unit.placed(of_places)).div_(total), highest + total.log2()
