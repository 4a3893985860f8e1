"""The loops of LSH attention: rows, tiles of heads, rounds of hashing, blocks of chunks.

What the loops touch at random is laid out so that one index fetches a token's query-key and value
side by side; everything else is read and written in order. Only a head's rounds exist at once in
the forward, only a head's round in the backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lsp.models.layers.chunked_attention import (
    FAR,
    LN2,
    LOG2E,
    Block,
    Dropout,
    RowMask,
    block_backward,
    block_forward,
    cast,
    compute_dtype,
    finish_rows,
    without_autocast,
)
from lsp.models.layers.chunks import Settings, Workspace, block_sizes


class _Tile:
    """Some heads of one row in their sorted order."""

    def __init__(
        self,
        qk_TLH: torch.Tensor,
        v_TLH: torch.Tensor,
        order_TRL: torch.Tensor,
        mask: RowMask | None,
        settings: Settings,
        chunks_per_block: int,
        workspace: Workspace,
    ) -> None:
        self.heads, self.rounds, self.length = order_TRL.shape
        self.mask, self.settings, self.chunks_per_block = mask, settings, chunks_per_block
        self.dtype, self.size = compute_dtype(qk_TLH), qk_TLH.shape[-1]
        window = settings.window
        # All heads one after another, so that one index selects from any of them.
        shape = (self.heads, self.length, 2 * self.size)
        qk_and_v = workspace.take("inputs", shape, qk_TLH.dtype)
        torch.cat([qk_TLH, v_TLH], dim=-1, out=qk_and_v)
        self.qk_and_v = qk_and_v.flatten(0, 1)
        square_TL = self.products(qk_TLH, qk_TLH, workspace)
        inverse_norm_TL = (square_TL / self.size + 1e-6).rsqrt_().mul_(self.size**-0.5 * LOG2E)
        self.inverse_norm = inverse_norm_TL.flatten()
        # The ring runs through all rounds: the first chunk of one sees the last of the one before.
        self.order_TRL = order_TRL
        ring_E = window.ring(self.rounds * self.length, order_TRL.device)
        ring_TE = order_TRL.flatten(1)[:, ring_E]
        place_TE = ring_TE.to(self.dtype).mul_(FAR)
        self.places = window.query_codes(place_TE), window.key_codes(place_TE)
        self.index_TE = ring_TE + self._head_starts(self.length)

    def _head_starts(self, rows_per_head: int) -> torch.Tensor:
        heads_T = torch.arange(self.heads, dtype=torch.int32, device=self.order_TRL.device)
        return heads_T[:, None] * rows_per_head

    def products(
        self, left_TLH: torch.Tensor, right_TLH: torch.Tensor, workspace: Workspace
    ) -> torch.Tensor:
        """Inner product of the two vectors of each position, in the computing type: (T, L)."""
        parts = []
        for part in self.position_parts():
            left_TPH = cast(left_TLH[:, part], self.dtype, "wide", workspace)
            right_TPH = cast(right_TLH[:, part], self.dtype, "wide_too", workspace)
            parts.append(torch.linalg.vecdot(left_TPH, right_TPH))
        return torch.cat(parts, dim=1)

    def blocks(self, number: int) -> Iterator[tuple[slice, slice]]:
        """Chunks of the blocks of one round: their place in the round, and on the whole ring."""
        chunks = self.length // self.settings.window.chunk_length
        for first in range(0, chunks, self.chunks_per_block):
            last = min(first + self.chunks_per_block, chunks)
            yield slice(first, last), slice(first + number * chunks, last + number * chunks)

    def slots(self, chunks: slice) -> slice:
        """Slots of the sorted order that chunks fill."""
        width = self.settings.window.chunk_length
        return slice(chunks.start * width, chunks.stop * width)

    def load(self, in_round: slice, on_ring: slice, workspace: Workspace) -> _Loaded:
        """Gathers what a block needs."""
        window = self.settings.window
        chunks = self.length // window.chunk_length
        count = in_round.stop - in_round.start
        index_TE = self.index_TE[:, window.span(on_ring.start, on_ring.stop)]
        both_TEX = fetch(self.qk_and_v, index_TE, "qk_and_v", workspace)
        qk_TEH, v_TEH = both_TEX[..., : self.size], both_TEX[..., self.size :]
        inverse_norm_TE1 = fetch(self.inverse_norm, index_TE, "norm", workspace)[..., None]
        key = workspace.take("key", tuple(qk_TEH.shape), self.dtype)
        key.copy_(qk_TEH).mul_(inverse_norm_TE1)
        block = Block(
            q=window.by_chunk(window.own(qk_TEH), "q", workspace),
            k=window.keys(cast(key, qk_TEH.dtype, "half_key", workspace), "k", workspace),
            v=window.keys(v_TEH, "v", workspace),
            window=window,
            heads=self.heads,
            places=(self.places[0][:, on_ring], self.places[1][:, on_ring]),
            causal=self.settings.causal,
            hidden=None if self.mask is None else self.mask.block(in_round.start, in_round.stop),
            self_edges=(
                min(max(window.before - in_round.start, 0), count),
                min(max(in_round.stop - chunks + window.after, 0), count),
            ),
        )
        return _Loaded(block, index_TE, key, inverse_norm_TE1)

    def slots_of_positions(self) -> torch.Tensor:
        """Where each position is in the sorted order of each round: (T, R, L) int64."""
        order_TRL = self.order_TRL.long()
        slots_L = torch.arange(self.length, device=order_TRL.device)
        return torch.empty_like(order_TRL).scatter_(2, order_TRL, slots_L.expand_as(order_TRL))

    def position_parts(self) -> Iterator[slice]:
        """Cuts the row for passes over positions."""
        step = self.chunks_per_block * self.settings.window.chunk_length
        for start in range(0, self.length, step):
            yield slice(start, min(start + step, self.length))


class _Loaded:
    """A block with what its gradients need besides."""

    def __init__(
        self,
        block: Block,
        index_TE: torch.Tensor,
        key_TEH: torch.Tensor,
        inverse_norm_TE1: torch.Tensor,
    ) -> None:
        self.block, self.index_TE = block, index_TE
        self.key_TEH, self.inverse_norm_TE1 = key_TEH, inverse_norm_TE1


def fetch(
    source: torch.Tensor, index_TE: torch.Tensor, name: str, workspace: Workspace
) -> torch.Tensor:
    """Rows of `source` by index (T, E, ...), in the buffer of that name."""
    shape = (index_TE.numel(), *source.shape[1:])
    out = workspace.take(name, shape, source.dtype)
    return torch.index_select(source, 0, index_TE.flatten(), out=out).unflatten(0, index_TE.shape)


def _tiles(
    qk_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    order_BNRL: torch.Tensor,
    document_BL: torch.Tensor | None,
    padding_BL: torch.Tensor | None,
    settings: Settings,
    workspace: Workspace,
) -> Iterator[tuple[int, slice, _Tile]]:
    batch, num_heads, length, _ = qk_BNLH.shape
    window = settings.window
    heads_at_once, chunks_per_block = block_sizes(
        qk_BNLH.device, num_heads, length // window.chunk_length, window
    )
    for row in range(batch):
        mask = None
        if document_BL is not None and padding_BL is not None:
            # The documents of the sorted slots are those of the row; padding comes last in each.
            # In a row that is one chunk nothing is sorted.
            document_L, padding_L = document_BL[row], padding_BL[row]
            if window.chunk_length < length:
                padding_L = padding_L[(document_L * 2 + padding_L).argsort(stable=True)]
            ring_E = window.ring(length, qk_BNLH.device)
            codes_E = document_L[ring_E], padding_L[ring_E]
            mask = RowMask(window, *codes_E, compute_dtype(qk_BNLH))
        for start in range(0, num_heads, heads_at_once):
            heads = slice(start, min(start + heads_at_once, num_heads))
            inputs = qk_BNLH[row, heads], v_BNLH[row, heads], order_BNRL[row, heads]
            yield row, heads, _Tile(*inputs, mask, settings, chunks_per_block, workspace)


class LSHAttention(torch.autograd.Function):
    """Attention in a given sorted order; the backward computes the scores again."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        qk_BNLH: torch.Tensor,
        v_BNLH: torch.Tensor,
        order_BNRL: torch.Tensor,
        document_BL: torch.Tensor | None,
        padding_BL: torch.Tensor | None,
        settings: Settings,
    ) -> torch.Tensor:
        ctx.settings = settings
        out_BNLH = torch.empty_like(v_BNLH)
        dtype = compute_dtype(qk_BNLH)
        base_BNRL = torch.empty(order_BNRL.shape, dtype=dtype, device=qk_BNLH.device)
        share_BNRL = torch.empty_like(base_BNRL)
        workspace = Workspace(qk_BNLH.device)
        dropout = Dropout(settings.dropout, settings.dropout_seed, qk_BNLH.device)
        arguments = qk_BNLH, v_BNLH, order_BNRL, document_BL, padding_BL
        for unit, (row, heads, tile) in enumerate(_tiles(*arguments, settings, workspace)):
            dropout.restart(unit)
            _forward_tile(
                tile,
                out_BNLH[row, heads],
                base_BNRL[row, heads],
                share_BNRL[row, heads],
                dropout,
                workspace,
            )
        ctx.save_for_backward(*arguments, base_BNRL, share_BNRL, out_BNLH)
        return out_BNLH

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, grad_BNLH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        settings = ctx.settings
        qk_BNLH, v_BNLH, order_BNRL, document_BL, padding_BL = ctx.saved_tensors[:5]
        base_BNRL, share_BNRL, out_BNLH = ctx.saved_tensors[5:]
        arguments = qk_BNLH, v_BNLH, order_BNRL, document_BL, padding_BL
        grad_qk_BNLH, grad_v_BNLH = torch.empty_like(qk_BNLH), torch.empty_like(v_BNLH)
        workspace = Workspace(grad_BNLH.device)
        dropout = Dropout(settings.dropout, settings.dropout_seed, grad_BNLH.device)
        for unit, (row, heads, tile) in enumerate(_tiles(*arguments, settings, workspace)):
            dropout.restart(unit)
            grads = _backward_tile(
                tile,
                grad_BNLH[row, heads],
                out_BNLH[row, heads],
                base_BNRL[row, heads],
                share_BNRL[row, heads],
                dropout,
                workspace,
            ).unflatten(0, (tile.heads, tile.length))
            # The keys were in base 2.
            torch.mul(grads[..., : tile.size], LN2, out=grad_qk_BNLH[row, heads])
            grad_v_BNLH[row, heads] = grads[..., tile.size :]
        return grad_qk_BNLH, grad_v_BNLH, None, None, None, None


def _forward_tile(
    tile: _Tile,
    out_TLH: torch.Tensor,
    base_TRL: torch.Tensor,
    share_TRL: torch.Tensor,
    dropout: Dropout,
    workspace: Workspace,
) -> None:
    """Fills the output, in order of positions, and what the backward needs, in sorted order."""
    shape = (tile.heads, tile.rounds * tile.length)
    sorted_TSH = workspace.take("sorted", (*shape, tile.size), out_TLH.dtype)
    highest_TS = base_TRL.new_empty(shape)
    total_TS = torch.empty_like(highest_TS)
    for number in range(tile.rounds):
        for in_round, on_ring in tile.blocks(number):
            block = tile.load(in_round, on_ring, workspace).block
            block_out, highest, total = block_forward(block, dropout, workspace)
            slots = tile.slots(on_ring)
            sorted_TSH[:, slots] = block_out.view(tile.heads, -1, block_out.shape[-1])
            highest_TS[:, slots] = highest.view(tile.heads, -1)
            total_TS[:, slots] = total.view(tile.heads, -1)
    rows = finish_rows(highest_TS.view_as(base_TRL), total_TS.view_as(base_TRL))
    # One softmax over all rounds: each round weighs as its sum.
    slots_TRL = tile.slots_of_positions()
    log_sum_TRL = rows.log_sum.gather(2, slots_TRL)
    weight_TRL = (log_sum_TRL - log_sum_TRL.logsumexp(1, keepdim=True)).exp()
    base_TRL.copy_(rows.base)
    share_TRL.scatter_(2, slots_TRL, weight_TRL).mul_(rows.share)
    normalise_TRL = (highest_TS.view_as(base_TRL) - rows.base).exp2_().mul_(share_TRL)
    normalise_TRL = normalise_TRL.gather(2, slots_TRL)
    starts_R1 = torch.arange(tile.rounds, device=slots_TRL.device)[:, None] * tile.length
    index_TRL = slots_TRL + starts_R1 + tile._head_starts(tile.rounds * tile.length)[..., None]
    source = sorted_TSH.flatten(0, 1)
    for part in tile.position_parts():
        target_TPH = out_TLH[:, part]
        sum_TPH = workspace.take("sum", tuple(target_TPH.shape), tile.dtype).zero_()
        for number in range(tile.rounds):
            factor = normalise_TRL[:, number, part, None]
            rows_TPH = fetch(source, index_TRL[:, number, part], "out", workspace)
            sum_TPH.addcmul_(cast(rows_TPH, tile.dtype, "wide", workspace), factor)
        target_TPH.copy_(sum_TPH)


def _backward_tile(
    tile: _Tile,
    grad_TLH: torch.Tensor,
    out_TLH: torch.Tensor,
    base_TRL: torch.Tensor,
    share_TRL: torch.Tensor,
    dropout: Dropout,
    workspace: Workspace,
) -> torch.Tensor:
    """Gradients of query-keys (divided by ln 2) and values side by side: (T * L, 2 H)."""
    window, width = tile.settings.window, tile.settings.window.chunk_length
    grad_rows = grad_TLH.reshape(-1, grad_TLH.shape[-1])
    delta = tile.products(grad_TLH, out_TLH, workspace).flatten()
    base_TS, share_TS = base_TRL.flatten(1), share_TRL.flatten(1)
    slots_TRL = tile.slots_of_positions()
    total = workspace.take("total", tuple(tile.qk_and_v.shape), tile.dtype).zero_()
    # Gradients of one round in its sorted order, with the neighbours in other rounds on both sides.
    chunks = tile.length // width
    ring_length = (chunks + window.before + window.after) * width
    ring_TEX = workspace.take("round", (tile.heads, ring_length, 2 * tile.size), tile.dtype)
    starts_T1 = tile._head_starts(ring_length) + window.before * width
    for number in range(tile.rounds):
        for in_round, on_ring in tile.blocks(number):
            loaded = tile.load(in_round, on_ring, workspace)
            own_TS = window.own(loaded.index_TE)
            shape = (*loaded.block.q.shape[:2], 1)
            slots = tile.slots(on_ring)
            share = share_TS[:, slots].reshape(shape)
            grad = fetch(grad_rows, own_TS, "grad", workspace).view(*shape[:2], -1)
            block_grads = block_backward(
                loaded.block,
                grad.mul_(share),
                base_TS[:, slots].reshape(shape),
                fetch(delta, own_TS, "delta", workspace).view(shape).mul_(share),
                dropout,
                workspace,
            )
            part_TEX = _block_gradients(tile, loaded, block_grads, workspace)
            target_TEX = ring_TEX[:, window.span(in_round.start, in_round.stop)]
            # The block before has written the neighbours that both see.
            seen = (window.before + window.after) * width if in_round.start > 0 else 0
            target_TEX[:, :seen] += part_TEX[:, :seen]
            target_TEX[:, seen:] = part_TEX[:, seen:]
        source = ring_TEX.flatten(0, 1)
        for part in tile.position_parts():
            index_TP = slots_TRL[:, number, part] + starts_T1
            total.unflatten(0, (tile.heads, -1))[:, part] += fetch(
                source, index_TP, "part", workspace
            )
        _add_outer(tile, number, ring_TEX, total)
    return total


def _block_gradients(
    tile: _Tile,
    loaded: _Loaded,
    block_grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    workspace: Workspace,
) -> torch.Tensor:
    """Gradients as in `_backward_tile`, where they are on the ring: (T, E, 2 H)."""
    window = tile.settings.window
    grad_q, grad_k, grad_v = block_grads
    shape = (*loaded.index_TE.shape, 2 * tile.size)
    part_TEX = workspace.take("ring", shape, tile.dtype)
    grad_TEH = part_TEX[..., : tile.size]
    window.add_windows(grad_TEH, grad_k, seen=0)
    window.add_windows(part_TEX[..., tile.size :], grad_v, seen=0)
    # A normalised key moves only sideways, and the less, the longer it was.
    key = loaded.key_TEH
    along_TE1 = torch.linalg.vecdot(key, grad_TEH)[..., None]
    grad_TEH.addcmul_(key, along_TE1, value=-(LN2**2)).mul_(loaded.inverse_norm_TE1)
    own_TSH = window.own(grad_TEH)
    own_TSH.add_(grad_q.view(own_TSH.shape))
    return part_TEX


def _add_outer(tile: _Tile, number: int, ring_TEX: torch.Tensor, total: torch.Tensor) -> None:
    """Adds what a round's first and last chunks gave to their neighbours in other rounds."""
    window, width = tile.settings.window, tile.settings.window.chunk_length
    start = number * tile.length
    index_TE = tile.index_TE[:, start : start + ring_TEX.shape[1]]
    inner_stop = ring_TEX.shape[1] - window.after * width
    for first in (
        *range(0, window.before * width, width),
        *range(inner_stop, ring_TEX.shape[1], width),
    ):
        # One chunk at a time, in which no row comes twice: the result does not depend on the order
        # of a GPU's atomic additions.
        part = slice(first, first + width)
        total.index_add_(0, index_TE[:, part].flatten(), ring_TEX[:, part].flatten(0, 1))
