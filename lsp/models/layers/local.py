"""Local attention: each chunk sees itself and its neighbours (2001.04451, section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lsp.models.layers.chunked_attention import (
    FAR,
    LEVELS,
    LN2,
    LOG2E,
    Block,
    Dropout,
    RowMask,
    block_backward,
    block_forward,
    compute_dtype,
    finish_rows,
    without_autocast,
)
from lsp.models.layers.chunks import (
    Settings,
    Window,
    Workspace,
    block_sizes,
    check_chunks,
    documents,
)


class _Tile:
    """Some heads of one row, block by block."""

    def __init__(
        self,
        qkv_TLH: Sequence[torch.Tensor],
        outer_TOH: Sequence[torch.Tensor | None],
        mask: RowMask | None,
        ring_E: torch.Tensor,
        settings: Settings,
        chunks_per_block: int,
        workspace: Workspace,
    ) -> None:
        q_TLH, k_TLH, v_TLH = qkv_TLH
        self.heads, self.length, size = q_TLH.shape
        self.mask, self.settings, self.chunks_per_block = mask, settings, chunks_per_block
        self.scale, self.workspace = size**-0.5, workspace
        self.ring_E = ring_E
        self.place_1E = ring_E.to(compute_dtype(q_TLH))[None] * FAR
        self.q_TLH = q_TLH
        outer_k_TOH, outer_v_TOH = outer_TOH
        self.k_TEH = self._on_ring(k_TLH, outer_k_TOH, "ring_k").mul_(self.scale * LOG2E)
        self.v_TEH = self._on_ring(v_TLH, outer_v_TOH, "ring_v")

    def _on_ring(
        self, x_TLH: torch.Tensor, outer_TOH: torch.Tensor | None, name: str
    ) -> torch.Tensor:
        shape = (self.heads, len(self.ring_E), x_TLH.shape[-1])
        out = self.workspace.take(name, shape, x_TLH.dtype)
        window = self.settings.window
        window.own(out).copy_(x_TLH)
        start = window.before * window.chunk_length
        before, after = slice(0, start), slice(start + self.length, None)
        if outer_TOH is not None:
            out[:, before], out[:, after] = outer_TOH[:, :start], outer_TOH[:, start:]
        else:
            for outer in (before, after):
                out[:, outer] = x_TLH[:, self.ring_E[outer]]
        return out

    def blocks(self) -> Iterator[tuple[Block, slice, slice]]:
        """Blocks in order, the positions of their queries, and of their keys on the ring."""
        window = self.settings.window
        chunks = self.length // window.chunk_length
        for first in range(0, chunks, self.chunks_per_block):
            last = min(first + self.chunks_per_block, chunks)
            slots = slice(first * window.chunk_length, last * window.chunk_length)
            span = window.span(first, last)
            place_1E = self.place_1E[:, span]
            block = Block(
                q=window.by_chunk(self.q_TLH[:, slots], "q", self.workspace),
                k=window.keys(self.k_TEH[:, span], "k", self.workspace),
                v=window.keys(self.v_TEH[:, span], "v", self.workspace),
                window=window,
                heads=self.heads,
                places=(window.query_codes(place_1E), window.key_codes(place_1E)),
                causal=self.settings.causal,
                hidden=None if self.mask is None else self.mask.block(first, last),
                self_edges=None,
            )
            yield block, slots, span


class _LocalAttention(torch.autograd.Function):
    """Loops over rows, tiles of heads and blocks; recomputes the scores backwards."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        q_BNLH: torch.Tensor,
        k_BNLH: torch.Tensor,
        v_BNLH: torch.Tensor,
        outer_k_BNOH: torch.Tensor | None,
        outer_v_BNOH: torch.Tensor | None,
        document_BL: torch.Tensor | None,
        padding_BL: torch.Tensor | None,
        settings: Settings,
    ) -> torch.Tensor:
        ctx.settings = settings
        out_BNLH = torch.empty_like(v_BNLH)
        base_BNL = torch.empty(q_BNLH.shape[:3], dtype=compute_dtype(q_BNLH), device=q_BNLH.device)
        # Only padding can leave a query without any key, and its share not 1.
        share_BNL = None if document_BL is None else torch.empty_like(base_BNL)
        workspace = Workspace(q_BNLH.device)
        dropout = Dropout(settings.dropout, settings.dropout_seed, q_BNLH.device)
        inputs = q_BNLH, k_BNLH, v_BNLH, outer_k_BNOH, outer_v_BNOH
        for unit, (row, heads, tile) in enumerate(
            _tiles(inputs, document_BL, padding_BL, settings, workspace)
        ):
            dropout.restart(unit)
            for block, slots, _ in tile.blocks():
                block_out, highest, total = block_forward(block, dropout, workspace)
                rows = finish_rows(highest, total, () if block.hidden is None else LEVELS)
                normalise = (highest - rows.base).exp2_().mul_(rows.share)
                shape = (tile.heads, -1)
                out = out_BNLH[row, heads, slots]
                torch.mul(block_out.view(out.shape), normalise.view(*shape, 1), out=out)
                base_BNL[row, heads, slots] = rows.base.view(shape)
                if share_BNL is not None:
                    share_BNL[row, heads, slots] = rows.share.view(shape)
        ctx.save_for_backward(*inputs, document_BL, padding_BL, base_BNL, share_BNL)
        return out_BNLH

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad_BNLH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        settings, window = ctx.settings, ctx.settings.window
        *inputs, document_BL, padding_BL, base_BNL, share_BNL = ctx.saved_tensors
        grad_q_BNLH, *grads_BNLH = (torch.empty_like(x) for x in inputs[:3])
        grads_BNOH = [None if x is None else torch.empty_like(x) for x in inputs[3:]]
        dtype = compute_dtype(inputs[0])
        workspace = Workspace(grad_BNLH.device)
        dropout = Dropout(settings.dropout, settings.dropout_seed, grad_BNLH.device)
        for unit, (row, heads, tile) in enumerate(
            _tiles(inputs, document_BL, padding_BL, settings, workspace)
        ):
            dropout.restart(unit)
            ring_k, ring_v = (
                workspace.take(name, tuple(tile.k_TEH.shape), dtype)
                for name in ("ring_grad_k", "ring_grad_v")
            )
            for block, slots, span in tile.blocks():
                grad = window.by_chunk(grad_BNLH[row, heads, slots], "grad", workspace)
                shape = (*grad.shape[:2], 1)
                if share_BNL is not None:
                    grad.mul_(share_BNL[row, heads, slots].reshape(shape))
                base = base_BNL[row, heads, slots].reshape(shape)
                grad_q, grad_k, grad_v = block_backward(block, grad, base, None, dropout, workspace)
                part = grad_q_BNLH[row, heads, slots]
                torch.mul(grad_q.view(part.shape), LN2, out=part)
                # The block before has written the neighbours that both see.
                seen = window.before + window.after if slots.start > 0 else 0
                window.add_windows(ring_k[:, span], grad_k, seen)
                window.add_windows(ring_v[:, span], grad_v, seen)
            for own, outer, ring, scale in zip(
                grads_BNLH, grads_BNOH, (ring_k, ring_v), (tile.scale, 1.0), strict=True
            ):
                if outer is None:
                    own[row, heads] = _fold(ring, tile.ring_E, window).mul_(scale)
                else:
                    own[row, heads] = window.own(ring).mul_(scale)
                    outer[row, heads] = window.around(ring).mul_(scale)
        return grad_q_BNLH, *grads_BNLH, *grads_BNOH, None, None, None


def _fold(ring_TEH: torch.Tensor, ring_E: torch.Tensor, window: Window) -> torch.Tensor:
    """Adds what the ring's outer neighbours received to where they came from: (T, L, H)."""
    own = window.own(ring_TEH)
    start = window.before * window.chunk_length
    stop = start + own.shape[1]
    for outer in (slice(0, start), slice(stop, None)):
        # One chunk at a time, in which no position comes twice.
        for index, part in zip(
            ring_E[outer].split(window.chunk_length),
            ring_TEH[:, outer].split(window.chunk_length, dim=1),
            strict=True,
        ):
            own.index_add_(1, index, part)
    return own


def _tiles(
    inputs: Sequence[torch.Tensor | None],
    document_BL: torch.Tensor | None,
    padding_BL: torch.Tensor | None,
    settings: Settings,
    workspace: Workspace,
) -> Iterator[tuple[int, slice, _Tile]]:
    q_BNLH = inputs[0]
    assert q_BNLH is not None
    batch, num_heads, length, _ = q_BNLH.shape
    window = settings.window
    ring_E = window.ring(
        length, q_BNLH.device, first=settings.first, row_length=settings.row_length
    )
    heads_at_once, chunks_per_block = block_sizes(
        q_BNLH.device, num_heads, length // window.chunk_length, window
    )
    for row in range(batch):
        mask = None
        if document_BL is not None and padding_BL is not None:
            codes_E = document_BL[row, ring_E], padding_BL[row, ring_E]
            mask = RowMask(window, *codes_E, compute_dtype(q_BNLH))
        for start in range(0, num_heads, heads_at_once):
            heads = slice(start, min(start + heads_at_once, num_heads))
            qkv_TLH = [x_BNLH[row, heads] for x_BNLH in inputs[:3] if x_BNLH is not None]
            outer_TOH = [None if x is None else x[row, heads] for x in inputs[3:]]
            tile = _Tile(qkv_TLH, outer_TOH, mask, ring_E, settings, chunks_per_block, workspace)
            yield row, heads, tile


def local_attention(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    *,
    chunk_length: int,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool,
    segment_ids_BL: torch.Tensor | None = None,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
    outer_BNOH: Sequence[torch.Tensor] = (),
    first: int = 0,
    row_length: int | None = None,
) -> torch.Tensor:
    """Attention inside chunks and their neighbours on a ring.

    The queries may be a run of a row's chunks: `outer_BNOH`, `first` and `row_length` then say
    what is around it.

    Args:
        q_BNLH: (B, N, L, H) queries, as projected: the scale 1/sqrt(H) is applied here.
        k_BNLH: (B, N, L, H) keys.
        v_BNLH: (B, N, L, H) values.
        chunk_length: Positions in a chunk; a sequence not longer than it is attended whole.
        chunks_before: Chunks before its own that a query sees.
        chunks_after: Chunks after its own that a query sees.
        causal: Whether a query sees no later position.
        segment_ids_BL: (B, row length) 0 for padding, 1.. for documents, which never see each
            other.
        dropout: Probability of dropping an attention weight.
        dropout_seed: Required where dropout > 0: the same seed drops the same weights.
        outer_BNOH: Keys and values of the `chunks_before` before the first query, then of the
            `chunks_after` after the last, on the row's ring; empty for a whole row.
        first: Position of the first query in its row.
        row_length: Positions of the row; None for L.

    Returns:
        (B, N, L, H) attention output in the dtype of the values.

    Raises:
        UserError: The chunk length does not divide a sequence that is longer than it.
    """
    length = q_BNLH.shape[2]
    check_chunks("local_attn_chunk_length", length, chunk_length)
    window = Window(chunk_length, chunks_before, chunks_after)
    if length <= chunk_length and not outer_BNOH:
        window = Window(length, 0, 0)
    document_BL = padding_BL = None
    if segment_ids_BL is not None:
        document_BL, padding_BL = documents(segment_ids_BL), segment_ids_BL == 0
    settings = Settings(window, causal, dropout, dropout_seed, first, row_length)
    inputs = q_BNLH, k_BNLH, v_BNLH, *(outer_BNOH or (None, None))
    return _LocalAttention.apply(*inputs, document_BL, padding_BL, settings)
