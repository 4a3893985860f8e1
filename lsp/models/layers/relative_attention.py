"""Causal attention over a row and what is remembered before it, by relative position.

The score of a query i and a key j at the distance d = i - j is (Transformer-XL, 1901.02860,
section 3.3)

    (q_i + u) k_j + (q_i + w) r_d + b_d

The products with all distances that a block needs are one matrix product; its rows, each one
place further, are the scores' second part: a view with other strides. Scores exist for one block
at a time, in both passes, as in the other kernels (flash attention, 2205.14135).

The legend is that of `lsp.core.batch`, of `chunks` and of `sight`; P stands for distances.
"""

from __future__ import annotations

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

Tensors = list[torch.Tensor | None]


@dataclass(frozen=True)
class Distances:
    """How distances score.

    Attributes:
        r: (N, P, H) what a query meets at the distances 0..P-1; further ones are like the last.
        u: (N, H) added to the queries that meet keys; None for nothing.
        w: (N, H) added to the queries that meet distances; None for nothing.
        b: (N, P) score of each distance for any query; None for nothing.
    """

    r: torch.Tensor
    u: torch.Tensor | None = None
    w: torch.Tensor | None = None
    b: torch.Tensor | None = None


def relative_attention(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    sight: Sight,
    *,
    remembered: tuple[torch.Tensor, torch.Tensor] | None = None,
    distances: Distances | None = None,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
) -> torch.Tensor:
    """Attention to the row and to what is remembered before it.

    Args:
        q_BNLH: (B, N, L, H) queries, as projected: the scale 1/sqrt(H) is applied here.
        k_BNLH: (B, N, L, H) keys.
        v_BNLH: (B, N, L, H) values.
        sight: Which keys each query sees.
        remembered: Keys and values before the row, (B, N, M, H) each; None for none.
        distances: How distances score; None where only keys do.
        dropout: Probability of dropping an attention weight.
        dropout_seed: Required where dropout > 0: the same seed drops the same weights.

    Returns:
        (B, N, L, H) attention output in the dtype of the values, 0 for what nobody sees.
    """
    places: Tensors = [None] * 4
    if distances is not None:
        # Learned distances are no product, so autocast leaves them as they are.
        r_NPH = distances.r.to(q_BNLH.dtype)
        places = [r_NPH, distances.u, distances.w, distances.b]
    inputs = (q_BNLH, k_BNLH, v_BNLH, *(remembered or (None, None)), *places)
    out_BNLH: torch.Tensor = _RelativeAttention.apply(*inputs, sight, dropout, dropout_seed)
    return out_BNLH


class _Far:
    """Distances of some heads, in the order of the keys that they belong to: the furthest first."""

    def __init__(self, places: Tensors, heads: slice, sight: Sight, work: BlockWorkspace) -> None:
        r, _, w, b = places
        assert r is not None
        self.sight, self.work = sight, work
        self.known, self.keys = r.shape[1], sight.memory + sight.length
        dtype, size = compute_dtype(r), r.shape[-1]
        self.scale = size**-0.5
        # A block looks past its last key as far as it is long; what is there is masked.
        shape = (heads.stop - heads.start, self.keys + block_size(work.device).queries, size)
        self.r_TEH = work.take("distances", shape, r.dtype)
        self._spread(self.r_TEH, r[heads]).mul_(self.scale * LOG2E)
        self.w_T1H = None if w is None else w[heads, None].to(r.dtype)
        self.b_TE: torch.Tensor | None = None
        if b is not None:
            self.b_TE = work.take("biases", shape[:2], r.dtype)
            self._spread(self.b_TE, b[heads]).mul_(self.scale * LOG2E)
        self.grad_r_TEH = torch.zeros((0,), dtype=dtype, device=work.device)
        self.grad_b_TE = self.grad_r_TEH

    def _spread(self, out_TE: torch.Tensor, x_TP: torch.Tensor) -> torch.Tensor:
        used = min(self.known, self.keys)
        out_TE[:, self.keys - used : self.keys] = x_TP[:, :used].flip(1)
        out_TE[:, : self.keys - used] = x_TP[:, used - 1 : used]
        out_TE[:, self.keys :] = 0
        return out_TE

    def _gathered(self, grad_TE: torch.Tensor) -> torch.Tensor:
        """The way back of `_spread`, scaled: (T, P, ...)."""
        used = min(self.known, self.keys)
        grad_TP = grad_TE.new_zeros((grad_TE.shape[0], self.known, *grad_TE.shape[2:]))
        grad_TP[:, :used] = grad_TE[:, self.keys - used : self.keys].flip(1)
        grad_TP[:, used - 1] += grad_TE[:, : self.keys - used].sum(1)
        return grad_TP.mul_(self.scale)

    def span(self, run: Run, part: tuple[int, int]) -> slice:
        """Where the distances of a block's last query to its first key, and all nearer, lie."""
        left, right = part
        first = self.sight.length - run.stop + left
        return slice(first, first + right - left + run.stop - run.first - 1)

    def products(self, q_w: torch.Tensor, span: slice) -> torch.Tensor:
        """Scores of queries and distances, valid until the next call."""
        r = self.r_TEH[:, span].transpose(1, 2)
        shape = (*q_w.shape[:2], r.shape[-1])
        out = self.work.take("wide", shape, q_w.dtype)
        if self.b_TE is None:
            return torch.bmm(q_w, r, out=out)
        return torch.baddbmm(self.b_TE[:, None, span], q_w, r, out=out)

    def begin_backward(self) -> None:
        """Makes room for the gradients."""
        dtype = self.grad_r_TEH.dtype
        self.grad_r_TEH = torch.zeros(self.r_TEH.shape, dtype=dtype, device=self.work.device)
        self.grad_b_TE = torch.zeros(self.r_TEH.shape[:2], dtype=dtype, device=self.work.device)

    def backward(
        self, grads: torch.Tensor, q_w: torch.Tensor, grad_q: torch.Tensor, span: slice
    ) -> None:
        """From the gradients of the scores, (T, K, W), to those of queries and distances."""
        count, width = grads.shape[1:]
        shape = (*grads.shape[:2], span.stop - span.start)
        wide = self.work.take("wide", shape, grads.dtype)
        wide[:, :, : count - 1] = wide[:, :, width:] = 0
        shifted(wide, tuple(grads.shape)).copy_(grads)
        grad_q.baddbmm_(wide, self.r_TEH[:, span])
        add_product(self.grad_r_TEH[:, span], wide.transpose(1, 2), q_w, self.work)
        if self.b_TE is not None:
            self.grad_b_TE[:, span] += wide.sum(1, dtype=self.grad_b_TE.dtype)

    def end_backward(self, grad_r: torch.Tensor, grad_b: torch.Tensor | None) -> None:
        """Writes the gradients (T, P, H) and (T, P)."""
        grad_r.copy_(self._gathered(self.grad_r_TEH))
        if grad_b is not None:
            grad_b.copy_(self._gathered(self.grad_b_TE))


class _Heads:
    """Some heads of a row, block by block."""

    def __init__(
        self,
        inputs: Tensors,
        row: int,
        heads: slice,
        sight: Sight,
        far: _Far | None,
        work: BlockWorkspace,
    ) -> None:
        q, k, v, mem_k, mem_v, _, u, _, _ = inputs
        assert q is not None
        assert k is not None
        assert v is not None
        self.sight, self.far, self.work, self.dtype = sight, far, work, compute_dtype(q)
        self.q_TLH = q[row, heads]
        self.u_T1H = None if u is None else u[heads, None].to(q.dtype)
        size = q.shape[-1]
        self.scale = size**-0.5
        remembered = [None if x is None else x[row, heads] for x in (mem_k, mem_v)]
        self.k_TEH = self._joined("keys", remembered[0], k[row, heads]).mul_(self.scale * LOG2E)
        self.v_TEH = self._joined("values", remembered[1], v[row, heads])
        self.hiding = Hiding(sight, row, self.dtype, work)

    def _joined(self, name: str, before: torch.Tensor | None, own: torch.Tensor) -> torch.Tensor:
        memory = 0 if before is None else before.shape[1]
        shape = (own.shape[0], memory + own.shape[1], own.shape[2])
        out = self.work.take(name, shape, own.dtype)
        if before is not None:
            out[:, :memory] = before
        out[:, memory:] = own
        return out

    def queries(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        """What meets the keys, and what meets the distances: (T, K, H) each."""
        own = self.q_TLH[:, run.first : run.stop]
        q_u = self.work.take("q_u", tuple(own.shape), own.dtype)
        if self.u_T1H is None:
            q_u.copy_(own)
        else:
            torch.add(own, self.u_T1H, out=q_u)
        if self.far is None:
            return q_u, q_u
        q_w = self.work.take("q_w", tuple(own.shape), own.dtype)
        if self.far.w_T1H is None:
            q_w.copy_(own)
        else:
            torch.add(own, self.far.w_T1H, out=q_w)
        return q_u, q_w

    def scores(
        self, run: Run, part: tuple[int, int], q_u: torch.Tensor, q_w: torch.Tensor
    ) -> torch.Tensor:
        """Scores in base 2, masked: (T, K, W), valid until the next call."""
        left, right = part
        k_TWH = self.k_TEH[:, left:right]
        shape = (q_u.shape[0], q_u.shape[1], right - left)
        scores = self.work.take("scores", shape, self.dtype)
        half = scores if q_u.dtype == self.dtype else self.work.take("half", shape, q_u.dtype)
        if self.far is None:
            torch.bmm(q_u, k_TWH.transpose(1, 2), out=half)
        else:
            wide = self.far.products(q_w, self.far.span(run, part))
            torch.baddbmm(shifted(wide, shape), q_u, k_TWH.transpose(1, 2), out=half)
        if half is not scores:
            scores.copy_(half)
        self.hiding.hide(scores, run, part)
        return scores


class _RelativeAttention(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, q_BNLH: torch.Tensor, *arguments: Any) -> torch.Tensor:
        *others, sight, rate, seed = arguments
        inputs: Tensors = [q_BNLH, *others]
        v_BNLH = inputs[2]
        assert v_BNLH is not None
        out_BNLH = torch.empty_like(v_BNLH)
        base_BNL = torch.empty(q_BNLH.shape[:3], dtype=compute_dtype(q_BNLH), device=q_BNLH.device)
        dropout = Dropout(rate, seed, q_BNLH.device)
        work = BlockWorkspace(q_BNLH.device)
        for _, group in _groups(inputs, sight, work, dropout):
            for row, heads, unit in group:
                for run in sight.runs(row):
                    out, base = _block_forward(unit, run, dropout, work)
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
        *saved, base_BNL, out_BNLH = ctx.saved_tensors
        inputs: Tensors = list(saved)
        sight, device = ctx.sight, grad_BNLH.device
        grads = [None if x is None else torch.empty_like(x) for x in inputs]
        dropout, work = Dropout(ctx.rate, ctx.seed, device), BlockWorkspace(device)
        for far, group in _groups(inputs, sight, work, dropout):
            if far is not None:
                far.begin_backward()
            sums_T2H: torch.Tensor | None = None
            for row, heads, unit in group:
                writer = _Gradients(unit)
                for run in sight.runs(row):
                    here = slice(run.first, run.stop)
                    grad = work.take("grad", tuple(unit.q_TLH[:, here].shape), grad_BNLH.dtype)
                    grad.copy_(grad_BNLH[row, heads, here])
                    silent_K1 = unit.hiding.silent(run)
                    if silent_K1 is not None:
                        grad.masked_fill_(silent_K1, 0.0)
                    out = out_BNLH[row, heads, here]
                    delta = torch.linalg.vecdot(grad.to(unit.dtype), out.to(unit.dtype))
                    base = base_BNL[row, heads, here, None]
                    writer.block(run, grad, base, delta[..., None], dropout)
                writer.write(grads, row, heads)
                sums_T2H = writer.sums if sums_T2H is None else sums_T2H.add_(writer.sums)
            if far is not None and sums_T2H is not None:
                grad_r, grad_u, grad_w, grad_b = grads[5:]
                assert grad_r is not None
                far.end_backward(grad_r[heads], None if grad_b is None else grad_b[heads])
                for grad_NH, total in zip((grad_u, grad_w), sums_T2H.unbind(1), strict=True):
                    if grad_NH is not None:
                        grad_NH[heads] = total.to(grad_NH.dtype)
        return *grads, None, None, None


class _Gradients:
    """Gradients of some heads of a row, added up block by block."""

    def __init__(self, unit: _Heads) -> None:
        self.unit, work = unit, unit.work
        self.grad_q = torch.empty(unit.q_TLH.shape, dtype=unit.q_TLH.dtype, device=work.device)
        self.grad_k, self.grad_v = (
            torch.zeros(unit.k_TEH.shape, dtype=unit.dtype, device=work.device) for _ in "kv"
        )
        # Of queries by keys and by distances: the gradients of what is added to them.
        heads, _, size = unit.q_TLH.shape
        self.sums = torch.zeros(heads, 2, size, dtype=unit.dtype, device=work.device)

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
        q_u, q_w = unit.queries(run)
        total = work.take("grad_q", tuple(q_u.shape), half).zero_()
        by_distance = work.take("grad_q_w", tuple(q_u.shape), half).zero_()
        for left, right in run.parts:
            keys = slice(left, right)
            weights = unit.scores(run, (left, right), q_u, q_w).sub_(base).exp2_()
            shape = tuple(weights.shape)
            grads = work.take("weights", shape, unit.dtype)
            v_THW = unit.v_TEH[:, keys].transpose(1, 2)
            if half == unit.dtype:
                torch.bmm(grad, v_THW, out=grads)
            else:
                grads.copy_(torch.bmm(grad, v_THW, out=work.take("half", shape, half)))
            kept = weights
            if dropout.dropped:
                # With Z the kept and scaled entries: dV = (P Z)' dO and dS = P (Z dP - delta).
                kept = work.take("kept", shape, unit.dtype).fill_(1)
                dropout.apply(kept, work)
                grads.mul_(kept)
                kept.mul_(weights)
            kept = cast(kept, half, "half", work)
            add_product(self.grad_v[:, keys], kept.transpose(1, 2), grad, work)
            grads.sub_(delta).mul_(weights)
            grads = cast(grads, half, "half", work)
            total.baddbmm_(grads, unit.k_TEH[:, keys])
            add_product(self.grad_k[:, keys], grads.transpose(1, 2), q_u, work)
            if unit.far is not None:
                span = unit.far.span(run, (left, right))
                unit.far.backward(grads, q_w, by_distance, span)
        self.sums[:, 0] += total.sum(1, dtype=unit.dtype)
        self.sums[:, 1] += by_distance.sum(1, dtype=unit.dtype)
        torch.add(total, by_distance, out=self.grad_q[:, run.first : run.stop]).mul_(LN2)

    def write(self, grads: Tensors, row: int, heads: slice) -> None:
        """Writes those of queries, keys, values, and of what is remembered."""
        self.sums.mul_(LN2)
        grad_q, grad_k, grad_v, grad_mem_k, grad_mem_v = grads[:5]
        assert grad_q is not None
        assert grad_k is not None
        assert grad_v is not None
        grad_q[row, heads] = self.grad_q
        self.grad_k.mul_(self.unit.scale)
        memory = self.unit.sight.memory
        for total, own, before in (
            (self.grad_k, grad_k, grad_mem_k),
            (self.grad_v, grad_v, grad_mem_v),
        ):
            own[row, heads] = total[:, memory:]
            if before is not None:
                before[row, heads] = total[:, :memory]


def _groups(
    inputs: Tensors, sight: Sight, work: BlockWorkspace, dropout: Dropout
) -> Iterator[tuple[_Far | None, Iterator[tuple[int, slice, _Heads]]]]:
    """Groups of heads, and the rows of each; the numbers of the dropout begin anew with each."""
    q_BNLH = inputs[0]
    assert q_BNLH is not None
    batch, num_heads = q_BNLH.shape[:2]
    step = block_size(work.device, num_heads).heads

    def rows(heads: slice, far: _Far | None) -> Iterator[tuple[int, slice, _Heads]]:
        for row in range(batch):
            dropout.restart(heads.start * batch + row)
            yield row, heads, _Heads(inputs, row, heads, sight, far, work)

    for first in range(0, num_heads, step):
        heads = slice(first, min(first + step, num_heads))
        far = None if inputs[5] is None else _Far(inputs[5:9], heads, sight, work)
        yield far, rows(heads, far)


def _block_forward(
    unit: _Heads, run: Run, dropout: Dropout, work: BlockWorkspace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of a block of queries, (T, K, H), and the logarithm of each sum, (T, K, 1)."""
    q_u, q_w = unit.queries(run)
    shape, dtype = tuple(q_u.shape), unit.v_TEH.dtype
    out = work.take("sum", shape, unit.dtype)
    highest = total = out[..., :1]
    for number, (left, right) in enumerate(run.parts):
        weights = unit.scores(run, (left, right), q_u, q_w)
        top = weights.amax(-1, keepdim=True)
        if number:
            top = torch.maximum(top, highest)
        part = weights.sub_(top).exp2_().sum(-1, keepdim=True)
        dropout.apply(weights, work)
        weights = cast(weights, dtype, "half", work)
        product = work.take("out", shape, dtype)
        torch.bmm(weights, unit.v_TEH[:, left:right], out=product)
        if number:
            fade = (highest - top).exp2_()
            out.mul_(fade).add_(product)
            part.addcmul_(total, fade)
        else:
            out.copy_(product)
        highest, total = top, part
    return out.div_(total), highest + total.log2()
