"""Sliding-window attention with tokens that everyone sees (Longformer, 2004.05150, section 3.1).

A query sees the keys around it and those of global tokens, all in one softmax. The row is cut into
chunks, each of which meets the chunks that its window reaches, in blocks small enough for a core's
cache; the backward pass computes the scores again, as in the other kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from lsp.models.layers.chunked_attention import (
    LN2,
    LOG2E,
    OTHER_DOCUMENT,
    Dropout,
    RowMask,
    block_backward,
    block_forward,
    compute_dtype,
    without_autocast,
)
from lsp.models.layers.chunks import Settings, Window, Workspace, block_sizes, documents
from lsp.models.layers.dropout import derive_seed

CHUNK = 64  # the smaller, the less of a window's corners is computed in vain; products want 64


@dataclass
class BiasedBlock:
    """Queries and the keys that they may see, as `block_forward` and `block_backward` take them.

    Attributes:
        q: (M, K, H) queries.
        k: (M, W, H) keys, scaled so that a product with a query is a score in base 2.
        v: (M, W, H) values.
        bias: Broadcasts to (M, K, W): added to the scores.
        heads: T, of M = T * C.
        codes: What `RowMask.block` says; None where nothing else is hidden.
        hidden: Always None: nothing is known of rows where everything is masked.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor
    heads: int
    codes: tuple[torch.Tensor, ...] | None = None
    hidden: tuple[torch.Tensor, ...] | None = None

    def scores(self, workspace: Workspace) -> torch.Tensor:
        """Scores in base 2, masked: (M, K, W), valid until the next call."""
        shape = (self.q.shape[0], self.q.shape[1], self.k.shape[1])
        dtype = compute_dtype(self.q)
        scores = workspace.take("scores", shape, dtype)
        if self.q.dtype == dtype:
            torch.baddbmm(self.bias, self.q, self.k.transpose(1, 2), out=scores)
        else:
            half = workspace.take("half", shape, self.q.dtype)
            torch.bmm(self.q, self.k.transpose(1, 2), out=half)
            torch.add(half, self.bias, out=scores)
        if self.codes is not None:
            q_document, k_document, k_padding = self.codes
            scores_TCKW = scores.unflatten(0, (self.heads, -1))
            gap = workspace.take("weights", (1, *scores_TCKW.shape[1:]), dtype)
            torch.sub(q_document, k_document, out=gap).abs_().add_(k_padding)
            scores_TCKW.sub_(gap)
        return scores

    def fill_self(self, scores: torch.Tensor, value: float) -> None:
        """Nothing: a token may look at itself."""


@dataclass(frozen=True)
class Span:
    """What does not differ from row to row, beside `Settings`.

    Attributes:
        before: Positions before its own that a query sees.
        after: Positions after its own that a query sees.
    """

    before: int
    after: int

    def window(self) -> Window:
        """The chunks that a query's window reaches."""
        chunk = min(CHUNK, 1 << (max(self.before, self.after, 8) - 1).bit_length())
        return Window(chunk, -(-self.before // chunk), -(-self.after // chunk))

    def band(self, window: Window, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """0 where a query of a chunk sees a key around it, else far below: (1, K, W)."""
        query_K1 = torch.arange(window.chunk_length, device=device)[:, None]
        key_W = torch.arange(window.size, device=device) - window.before * window.chunk_length
        distance_KW = key_W - query_K1
        seen_KW = (distance_KW >= -self.before) & (distance_KW <= self.after)
        return torch.where(seen_KW, 0.0, -OTHER_DOCUMENT).to(dtype)[None]


class _Row:
    """Some heads of one row, block by block."""

    def __init__(
        self,
        qkv_TLH: Sequence[torch.Tensor],
        outer_TOH: Sequence[torch.Tensor | None],
        mask: RowMask,
        band: torch.Tensor,
        silent_L: torch.Tensor,
        global_G: torch.Tensor,
        global_document_G: torch.Tensor,
        window: Window,
        chunks_per_block: int,
        workspace: Workspace,
    ) -> None:
        self.q_TLH, k_TLH, v_TLH = qkv_TLH
        self.heads, self.length, size = self.q_TLH.shape
        self.mask, self.band, self.window = mask, band, window
        self.chunks_per_block, self.workspace = chunks_per_block, workspace
        self.scale = size**-0.5
        outer_k_TOH, outer_v_TOH = outer_TOH
        self.k_TEH = self._on_ring(k_TLH, outer_k_TOH, "ring_k").mul_(self.scale * LOG2E)
        self.v_TEH = self._on_ring(v_TLH, outer_v_TOH, "ring_v")
        self.k_TGH = window.own(self.k_TEH)[:, global_G]
        self.v_TGH = v_TLH[:, global_G]
        self.global_G, self.global_document_G = global_G, global_document_G
        self.silent_L1 = silent_L[:, None]

    def _on_ring(
        self, x_TLH: torch.Tensor, outer_TOH: torch.Tensor | None, name: str
    ) -> torch.Tensor:
        window = self.window
        shape = (self.heads, self.length + window.outer, x_TLH.shape[-1])
        out = self.workspace.take(name, shape, x_TLH.dtype)
        window.own(out).copy_(x_TLH)
        start = window.before * window.chunk_length
        before, after = slice(0, start), slice(start + self.length, None)
        if outer_TOH is None:
            out[:, before] = out[:, after] = 0
        else:
            out[:, before], out[:, after] = outer_TOH[:, :start], outer_TOH[:, start:]
        return out

    def blocks(self) -> Iterator[tuple[slice, slice, BiasedBlock, BiasedBlock | None]]:
        """Slots of the queries, of the keys on the ring, the window's block, the global one's."""
        window, workspace = self.window, self.workspace
        chunks = self.length // window.chunk_length
        for first in range(0, chunks, self.chunks_per_block):
            last = min(first + self.chunks_per_block, chunks)
            slots = slice(first * window.chunk_length, last * window.chunk_length)
            span = window.span(first, last)
            near = BiasedBlock(
                q=window.by_chunk(self.q_TLH[:, slots], "q", workspace),
                k=window.keys(self.k_TEH[:, span], "k", workspace),
                v=window.keys(self.v_TEH[:, span], "v", workspace),
                bias=self.band,
                heads=self.heads,
                codes=self.mask.block(first, last),
            )
            far = None
            if len(self.global_G):
                document_TS = self.mask.q_document[:, first:last].flatten(1)
                gap_TSG = document_TS[..., None] - self.global_document_G
                far = BiasedBlock(
                    q=near.q.view(self.heads, -1, near.q.shape[-1]),
                    k=self.k_TGH,
                    v=self.v_TGH,
                    bias=-gap_TSG.abs_(),
                    heads=self.heads,
                )
            yield slots, span, near, far


class _SlidingWindow(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        q_BNLH: torch.Tensor,
        k_BNLH: torch.Tensor,
        v_BNLH: torch.Tensor,
        outer_k_BNOH: torch.Tensor | None,
        outer_v_BNOH: torch.Tensor | None,
        document_BL: torch.Tensor,
        padding_BL: torch.Tensor,
        global_BL: torch.Tensor | None,
        span: Span,
        settings: Settings,
    ) -> torch.Tensor:
        ctx.span, ctx.settings = span, settings
        inputs = q_BNLH, k_BNLH, v_BNLH, outer_k_BNOH, outer_v_BNOH
        masks = document_BL, padding_BL, global_BL
        out_BNLH = torch.empty_like(v_BNLH)
        base_BNL = torch.empty(q_BNLH.shape[:3], dtype=compute_dtype(q_BNLH), device=q_BNLH.device)
        workspace = Workspace(q_BNLH.device)
        dropout = Dropout(settings.dropout, settings.dropout_seed, q_BNLH.device)
        for unit, (row, heads, tile) in enumerate(_rows(inputs, masks, span, settings, workspace)):
            dropout.restart(unit)
            for slots, _, near, far in tile.blocks():
                out = out_BNLH[row, heads, slots]
                block_out, highest, total = block_forward(near, dropout, workspace)
                shape = (tile.heads, -1, 1)
                highest, total = highest.view(shape), total.view(shape)
                if far is None:
                    base = highest + total.log2()
                    torch.mul(block_out.view(out.shape), (highest - base).exp2(), out=out)
                else:
                    near_out = workspace.take("near_out", tuple(out.shape), out.dtype)
                    near_out.copy_(block_out.view(out.shape))
                    far_out, far_highest, far_total = block_forward(far, dropout, workspace)
                    base = torch.logaddexp2(highest + total.log2(), far_highest + far_total.log2())
                    torch.mul(near_out, (highest - base).exp2(), out=out)
                    out.addcmul_(far_out, (far_highest - base).exp2().to(out.dtype))
                out.masked_fill_(tile.silent_L1[slots], 0.0)
                base_BNL[row, heads, slots] = base[..., 0]
        ctx.save_for_backward(*inputs, *masks, base_BNL, out_BNLH)
        return out_BNLH

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad_BNLH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        span, settings = ctx.span, ctx.settings
        window = settings.window
        *inputs, document_BL, padding_BL, global_BL, base_BNL, out_BNLH = ctx.saved_tensors
        masks = document_BL, padding_BL, global_BL
        grad_q_BNLH, *grads_BNLH = (torch.empty_like(x) for x in inputs[:3])
        grads_BNOH = [None if x is None else torch.empty_like(x) for x in inputs[3:]]
        dtype = compute_dtype(inputs[0])
        workspace = Workspace(grad_BNLH.device)
        dropout = Dropout(settings.dropout, settings.dropout_seed, grad_BNLH.device)
        for unit, (row, heads, tile) in enumerate(_rows(inputs, masks, span, settings, workspace)):
            dropout.restart(unit)
            ring_k, ring_v = (
                workspace.take(name, tuple(tile.k_TEH.shape), dtype)
                for name in ("ring_grad_k", "ring_grad_v")
            )
            grad_k_TGH, grad_v_TGH = (
                torch.zeros(tile.k_TGH.shape, dtype=dtype, device=grad_BNLH.device) for _ in "kv"
            )
            for slots, on_ring, near, far in tile.blocks():
                base = base_BNL[row, heads, slots, None]
                grad = workspace.take(
                    "grad", tuple(base.shape[:2]) + inputs[0].shape[-1:], grad_BNLH.dtype
                )
                torch.mul(grad_BNLH[row, heads, slots], ~tile.silent_L1[slots], out=grad)
                out = out_BNLH[row, heads, slots]
                delta = torch.linalg.vecdot(grad.to(dtype), out.to(dtype))[..., None]
                by_chunk = (near.q.shape[0], near.q.shape[1], -1)
                grad_q, grad_k, grad_v = block_backward(
                    near,
                    grad.view(by_chunk),
                    base.reshape(by_chunk),
                    delta.view(by_chunk),
                    dropout,
                    workspace,
                )
                part = grad_q_BNLH[row, heads, slots]
                torch.mul(grad_q.view(part.shape), LN2, out=part)
                # The block before has written the neighbours that both see.
                seen = window.before + window.after if slots.start > 0 else 0
                window.add_windows(ring_k[:, on_ring], grad_k, seen)
                window.add_windows(ring_v[:, on_ring], grad_v, seen)
                if far is not None:
                    far_q, far_k, far_v = block_backward(far, grad, base, delta, dropout, workspace)
                    part.add_(far_q, alpha=LN2)
                    grad_k_TGH += far_k
                    grad_v_TGH += far_v
            for total, outer, ring, grad_TGH, scale in zip(
                grads_BNLH,
                grads_BNOH,
                (ring_k, ring_v),
                (grad_k_TGH, grad_v_TGH),
                (tile.scale, 1.0),
                strict=True,
            ):
                own = window.own(ring)
                own.index_add_(1, tile.global_G, grad_TGH)
                total[row, heads] = own.mul_(scale)
                if outer is not None:
                    outer[row, heads] = window.around(ring).mul_(scale)
        return grad_q_BNLH, *grads_BNLH, *grads_BNOH, None, None, None, None, None


def _rows(
    inputs: Sequence[torch.Tensor | None],
    masks: tuple[torch.Tensor | None, ...],
    span: Span,
    settings: Settings,
    workspace: Workspace,
) -> Iterator[tuple[int, slice, _Row]]:
    document_BL, padding_BL, global_BL = masks
    assert document_BL is not None
    assert padding_BL is not None
    q_BNLH = inputs[0]
    assert q_BNLH is not None
    batch, num_heads, length, _ = q_BNLH.shape
    window, device, dtype = settings.window, q_BNLH.device, compute_dtype(q_BNLH)
    here = slice(settings.first, settings.first + length)
    around = slice(here.start, here.stop + window.outer)
    heads_at_once, chunks_per_block = block_sizes(
        device, num_heads, length // window.chunk_length, window
    )
    band = span.band(window, dtype, device)
    edges = (window.before * window.chunk_length, window.after * window.chunk_length)
    for row in range(batch):
        # Beyond the ends of a row lies another document.
        document_E = F.pad(document_BL[row], edges, value=-1)[around]
        unseen_L = padding_BL[row]
        global_G = torch.empty(0, dtype=torch.int64, device=device)
        if global_BL is not None:
            # What everyone sees is not to be counted twice.
            unseen_L = unseen_L | global_BL[row]
            global_G = global_BL[row].nonzero()[:, 0]
        mask = RowMask(window, document_E, F.pad(unseen_L, edges)[around], dtype)
        global_document_G = document_BL[row, global_G].to(dtype) * OTHER_DOCUMENT
        for start in range(0, num_heads, heads_at_once):
            heads = slice(start, min(start + heads_at_once, num_heads))
            qkv_TLH = [x_BNLH[row, heads] for x_BNLH in inputs[:3] if x_BNLH is not None]
            outer_TOH = [None if x is None else x[row, heads] for x in inputs[3:]]
            yield (
                row,
                heads,
                _Row(
                    qkv_TLH,
                    outer_TOH,
                    mask,
                    band,
                    padding_BL[row, here],
                    global_G,
                    global_document_G,
                    window,
                    chunks_per_block,
                    workspace,
                ),
            )


def sliding_window_attention(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    *,
    before: int,
    after: int,
    segment_ids_BL: torch.Tensor | None = None,
    global_BL: torch.Tensor | None = None,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
    outer_BNOH: Sequence[torch.Tensor] = (),
    first: int = 0,
) -> torch.Tensor:
    """Attention to the keys around each query, and to global tokens.

    The queries may be a run of a row's positions: `outer_BNOH` and `first` then say what is around
    it, and there are no global tokens.

    Args:
        q_BNLH: (B, N, L, H) queries, as projected: the scale 1/sqrt(H) is applied here.
        k_BNLH: (B, N, L, H) keys.
        v_BNLH: (B, N, L, H) values.
        before: Positions before its own that a query sees.
        after: Positions after its own that a query sees; 0 is causal.
        segment_ids_BL: (B, row length) 0 for padding, 1.. for documents, which never see each
            other; needed where the queries are a run of a row.
        global_BL: (B, L) true where every query of the same document sees the key, however far.
        dropout: Probability of dropping an attention weight.
        dropout_seed: Required where dropout > 0: the same seed drops the same weights.
        outer_BNOH: Keys and values around the queries, as many as `reach_around` says, whatever
            lies beyond the ends of the row; empty for a whole row.
        first: Position of the first query in its row.

    Returns:
        (B, N, L, H) attention output in the dtype of the values, 0 for padding. What global
        tokens themselves see is not made here.
    """
    batch, _, length, _ = q_BNLH.shape
    device = q_BNLH.device
    if segment_ids_BL is None:
        segment_ids_BL = torch.ones(batch, length, dtype=torch.int64, device=device)
    span = Span(before, after)
    if not outer_BNOH:
        span = Span(min(before, length - 1), min(after, length - 1))
    window = span.window()
    missing = -length % window.chunk_length
    if missing:
        assert not outer_BNOH, "a run of a row's positions is a whole number of chunks"
        q_BNLH, k_BNLH, v_BNLH = (F.pad(x, (0, 0, 0, missing)) for x in (q_BNLH, k_BNLH, v_BNLH))
        segment_ids_BL = F.pad(segment_ids_BL, (0, missing))
        global_BL = None if global_BL is None else F.pad(global_BL, (0, missing))
    padding_BL = segment_ids_BL == 0
    settings = Settings(window, span.after == 0, dropout, dropout_seed, first)
    out_BNLH = _SlidingWindow.apply(
        q_BNLH,
        k_BNLH,
        v_BNLH,
        *(outer_BNOH or (None, None)),
        documents(segment_ids_BL),
        padding_BL,
        None if global_BL is None else global_BL & ~padding_BL,
        span,
        settings,
    )
    return out_BNLH[:, :, :length]


def reach_around(before: int, after: int) -> tuple[int, int]:
    """How many positions before and after a run of queries their windows' chunks reach."""
    window = Span(before, after).window()
    return window.before * window.chunk_length, window.after * window.chunk_length


def dilated_window_attention(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    gaps: Sequence[int],
    *,
    segment_ids_BL: torch.Tensor | None = None,
    dropout_seed: int | None = None,
    **options: Any,
) -> torch.Tensor:
    """Windows with gaps, each head with its own (section 3.1): positions p, p ± gap, p ± 2 gap, …

    The positions that a gap connects form rows of their own, in which a window has no gaps.

    Args:
        q_BNLH: (B, N, L, H) queries.
        k_BNLH: (B, N, L, H) keys.
        v_BNLH: (B, N, L, H) values.
        gaps: Of each head; each divides L.
        segment_ids_BL: (B, L) 0 for padding, 1.. for documents, which never see each other.
        dropout_seed: Required where attention weights are dropped.
        options: As `sliding_window_attention`, but for global tokens.

    Returns:
        (B, N, L, H).
    """
    batch = q_BNLH.shape[0]
    parts, order = [], []
    for gap in sorted(set(gaps)):
        heads = [head for head, other in enumerate(gaps) if other == gap]
        order += heads

        def apart(x_BNLH: torch.Tensor, heads: list[int] = heads, gap: int = gap) -> torch.Tensor:
            x_BGNMH = x_BNLH[:, heads].unflatten(2, (-1, gap)).movedim(3, 1)
            return x_BGNMH.flatten(0, 1)

        segments = None
        if segment_ids_BL is not None:
            segments = segment_ids_BL.unflatten(1, (-1, gap)).transpose(1, 2).flatten(0, 1)
        part = sliding_window_attention(
            apart(q_BNLH),
            apart(k_BNLH),
            apart(v_BNLH),
            segment_ids_BL=segments,
            dropout_seed=None if dropout_seed is None else derive_seed(dropout_seed, gap),
            **options,
        )
        parts.append(part.unflatten(0, (batch, gap)).movedim(1, 3).flatten(2, 3))
    out_BNLH = torch.cat(parts, dim=1)
    return out_BNLH[:, torch.tensor(order, device=out_BNLH.device).argsort()]
