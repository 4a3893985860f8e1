"""Moving averages with learned decays, block by block (Mega, 2209.10655, section 3.1).

The average of a feature is the sum of N that decay at rates of their own,

    h_t = q h_(t-1) + x_t,    y_t = sum over N of w h_t,

which is also a convolution as long as the row. Within a block of positions it is computed as that,
one small product for each feature; between blocks only the h are handed on. So time and memory are
linear in length, where a Fourier transform of the row takes L log L, and cannot tell documents
apart: here nothing of a document is ever added to another, not even to be taken away again.

Beyond the legend of `lsp.core.batch`: S directions, G features computed together, N averages of a
feature, R blocks of a row, K positions of a block, M = B * R blocks, P blocks and what they hold of
further documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lsp.models.layers.chunked_attention import compute_dtype, without_autocast
from lsp.models.layers.chunks import documents
from lsp.models.layers.tiling import tile_spans

BLOCK = 64
"""Positions of a block: the product within costs as much per position, what is handed on the
inverse of it."""
FAN = 16
"""Blocks that are gone through one by one, before as many of those are."""
CPU_GROUP, GPU_GROUP = 2**21, 2**26
"""Numbers of the features computed together: fixed, as both passes must cut the same groups."""


@dataclass(frozen=True)
class Layout:
    """Where documents begin and end in the blocks of some rows.

    Attributes:
        real: (K, M) 0 for padding, as numbers.
        first: (K, M) 1 for positions of the document that a block begins with.
        last: (K, M) 1 for positions of the document that it ends with.
        goes_on: (R, B) 1 where a block begins with the document that the one before ends with.
        passes: (R, B) 1 where a block besides is of one document alone.
        passes_back: (R, B) 1 where that is the one the next block begins with.
        inner: (I,) blocks with a further document, one for each of these; None where there is none.
        inside: (K, I) 1 for the positions of that document.
        ending: (M,) which of P holds the document that a block ends with.
    """

    real: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    goes_on: torch.Tensor
    passes: torch.Tensor
    passes_back: torch.Tensor
    inner: torch.Tensor | None
    inside: torch.Tensor
    ending: torch.Tensor


def make_layout(segment_ids_BL: torch.Tensor | None, dtype: torch.dtype) -> Layout | None:
    """The layout of rows by their document numbers; None for one document per row.

    Waits for the device once, for the number of documents.

    Args:
        segment_ids_BL: (B, L) 0 for padding, a document is a run of one other number.
        dtype: Of the averages' arithmetic.
    """
    if segment_ids_BL is None:
        return None
    length = segment_ids_BL.shape[1]
    document_BL = documents(segment_ids_BL)
    missing = -length % BLOCK
    if missing:
        document_BL = torch.cat([document_BL, document_BL[:, -1:].expand(-1, missing)], dim=1)
    document_BRK = document_BL.unflatten(1, (-1, BLOCK))
    real_BRK = F.pad(segment_ids_BL != 0, (0, missing)).unflatten(1, (-1, BLOCK))
    begins_BR, ends_BR = document_BRK[..., 0], document_BRK[..., -1]
    goes_on_BR = torch.zeros_like(begins_BR, dtype=torch.bool)
    goes_on_BR[:, 1:] = begins_BR[:, 1:] == ends_BR[:, :-1]
    alone_BR = begins_BR == ends_BR
    followed_BR = goes_on_BR.roll(-1, dims=1)
    # Documents are numbered in row order, so a block has those from its first to its last.
    further_M = (ends_BR - begins_BR).flatten().long()
    blocks = torch.arange(len(further_M), device=document_BL.device)
    inner_I = blocks.repeat_interleave(further_M)
    before_M = further_M.cumsum(0) - further_M
    number_I = torch.arange(len(inner_I), device=blocks.device) - before_M[inner_I] + 1
    document_MK = document_BRK.flatten(0, 1)
    inside_IK = document_MK[inner_I] == (document_MK[inner_I, 0] + number_I)[:, None]

    def by_position(mask_BRK: torch.Tensor) -> torch.Tensor:
        return mask_BRK.flatten(0, 1).t().to(dtype).contiguous()

    def by_block(mask_BR: torch.Tensor) -> torch.Tensor:
        return mask_BR.t().to(dtype).contiguous()

    return Layout(
        real=by_position(real_BRK),
        first=by_position(document_BRK == begins_BR[..., None]),
        last=by_position(document_BRK == ends_BR[..., None]),
        goes_on=by_block(goes_on_BR),
        passes=by_block(goes_on_BR & alone_BR),
        passes_back=by_block(followed_BR & alone_BR),
        inner=inner_I if len(inner_I) else None,
        inside=inside_IK.t().to(dtype).contiguous(),
        ending=torch.where(further_M > 0, len(blocks) + before_M + further_M - 1, blocks),
    )


def moving_average(
    x_BLD: torch.Tensor,
    log_decay_SDN: torch.Tensor,
    weight_SDN: torch.Tensor,
    layout: Layout | None,
) -> torch.Tensor:
    """The averages of every feature, of its own document alone.

    Args:
        x_BLD: (B, L, D).
        log_decay_SDN: (S, D, N) logarithms of q, negative; S is 1 for averages over earlier
            positions, and 2 where others run the other way. A position counts in both.
        weight_SDN: (S, D, N) w.
        layout: Of the rows; padding counts as 0.

    Returns:
        (B, L, D) in the type of x.
    """
    y_BLD: torch.Tensor = _MovingAverage.apply(x_BLD, log_decay_SDN, weight_SDN, layout)
    return y_BLD


def feature_groups(x_BLD: torch.Tensor) -> list[slice]:
    """Features that are computed together."""
    budget = CPU_GROUP if x_BLD.device.type == "cpu" else GPU_GROUP
    return tile_spans(x_BLD.shape[2], -(-x_BLD.numel() // budget))


class _MovingAverage(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        x_BLD: torch.Tensor,
        log_decay_SDN: torch.Tensor,
        weight_SDN: torch.Tensor,
        layout: Layout | None,
    ) -> torch.Tensor:
        ctx.layout = layout
        ctx.save_for_backward(x_BLD, log_decay_SDN, weight_SDN)
        y_BLD = torch.empty_like(x_BLD)
        for group in feature_groups(x_BLD):
            y_BLD[..., group] = _average(
                x_BLD[..., group], log_decay_SDN[:, group], weight_SDN[:, group], layout
            )
        return y_BLD

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, grad_BLD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_BLD, log_decay_SDN, weight_SDN = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in ctx.saved_tensors]
        for group in feature_groups(x_BLD):
            parts = [x_BLD[..., group], log_decay_SDN[:, group], weight_SDN[:, group]]
            leaves = [part.detach().requires_grad_() for part in parts]
            with torch.enable_grad():
                y_BLG = _average(leaves[0], leaves[1], leaves[2], ctx.layout)
            found = torch.autograd.grad(y_BLG, leaves, grad_BLD[..., group].to(y_BLG.dtype))
            grads[0][..., group] = found[0]
            for grad, part in zip(grads[1:], found[1:], strict=True):
                grad[:, group] = part
        return *grads, None


def _average(
    x_BLG: torch.Tensor,
    log_decay_SGN: torch.Tensor,
    weight_SGN: torch.Tensor,
    layout: Layout | None,
) -> torch.Tensor:
    rows, length, width = x_BLG.shape
    dtype = compute_dtype(x_BLG)
    log_decay_SGN, weight_SGN = log_decay_SGN.to(dtype), weight_SGN.to(dtype)
    x_BLG = F.pad(x_BLG.to(dtype), (0, 0, 0, -length % BLOCK))
    x_GKM = x_BLG.view(rows, -1, BLOCK, width).permute(3, 2, 0, 1).flatten(2)
    blocks = x_GKM.shape[2]
    step_K = torch.arange(BLOCK, device=x_BLG.device, dtype=dtype)
    power_SGNK = torch.exp(log_decay_SGN[..., None] * step_K)

    x_GKP = x_GKM
    if layout is not None:
        x_GKM = x_GKM * layout.real
        x_GKP = x_GKM
        if layout.inner is not None:
            further_GKI = x_GKM[..., layout.inner] * layout.inside
            x_GKP = torch.cat([x_GKM * layout.first, further_GKI], dim=2)
    y_GKP = torch.bmm(_within(power_SGNK, weight_SGN), x_GKP)
    y_GKM = y_GKP
    if layout is not None and layout.inner is not None:
        y_GKM = (y_GKP[..., :blocks] * layout.first).index_add(
            2, layout.inner, y_GKP[..., blocks:] * layout.inside
        )
    for direction in range(len(log_decay_SGN)) if blocks > rows else ():
        forwards = direction == 0
        log_decay_GN, power_GNK = log_decay_SGN[direction], power_SGNK[direction]
        # What a position still counts at the end of its block, and an entering state at each.
        leaving_GNK = power_GNK.flip(-1) if forwards else power_GNK
        weight_GN1 = (weight_SGN[direction] * torch.exp(log_decay_GN))[..., None]
        entering_GNK = (power_GNK if forwards else power_GNK.flip(-1)) * weight_GN1
        state_GNP = torch.bmm(leaving_GNK, x_GKP)
        if layout is not None and layout.inner is not None:
            ending = layout.ending if forwards else slice(0, blocks)
            state_GNP = state_GNP[..., ending]
        state_RBGN = state_GNP.unflatten(2, (rows, -1)).permute(3, 2, 0, 1)
        passes = goes_on = None
        if layout is not None:
            passes = layout.passes if forwards else layout.passes_back
            goes_on = layout.goes_on[1:, :, None, None]
        if forwards:
            handed = _HandOn.apply(state_RBGN, log_decay_GN * BLOCK, passes)[:-1]
        else:
            back = None if passes is None else passes.flip(0)
            handed = _HandOn.apply(state_RBGN.flip(0), log_decay_GN * BLOCK, back).flip(0)[1:]
        if goes_on is not None:
            handed = handed * goes_on
        edge = (1, 0) if forwards else (0, 1)
        entered_RBGN = F.pad(handed, (0, 0, 0, 0, 0, 0, *edge))
        entered_GNM = entered_RBGN.permute(2, 3, 1, 0).flatten(2)
        carried_GKM = torch.bmm(entering_GNK.transpose(1, 2), entered_GNM)
        if layout is not None:
            carried_GKM = carried_GKM * (layout.first if forwards else layout.last)
        y_GKM = y_GKM + carried_GKM
    y_BRKG = y_GKM.unflatten(2, (rows, -1)).permute(2, 3, 1, 0)
    return y_BRKG.flatten(1, 2)[:, :length]


def _within(power_SGNK: torch.Tensor, weight_SGN: torch.Tensor) -> torch.Tensor:
    """What each position of a block counts at each: (G, K, K)."""
    kernel_SGK = torch.einsum("sgnk,sgn->sgk", power_SGNK, weight_SGN)
    before_GK = kernel_SGK[0]
    after_GK = kernel_SGK[1] if len(kernel_SGK) > 1 else torch.zeros_like(before_GK)
    both_G1 = before_GK[:, :1] + after_GK[:, :1]
    distance_GX = torch.cat([after_GK[:, 1:].flip(-1), both_G1, before_GK[:, 1:]], dim=1)
    # Row t is what distances t, t - 1, … count.
    return distance_GX.unfold(1, BLOCK, 1).flip(-1)


class _HandOn(torch.autograd.Function):
    """State of each block: its own, and the decayed one of the block before where it passes."""

    @staticmethod
    def forward(
        ctx: Any, own_RBX: torch.Tensor, log_decay_X: torch.Tensor, passes_RB: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.passes = passes_RB
        state_RBX = hand_on(own_RBX, log_decay_X, passes_RB)
        ctx.save_for_backward(state_RBX, log_decay_X)
        return state_RBX

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_RBX: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        state_RBX, log_decay_X = ctx.saved_tensors
        back = None if ctx.passes is None else _shifted(ctx.passes).flip(0)
        grad_own = hand_on(grad_RBX.flip(0), log_decay_X, back).flip(0)
        product = grad_own[1:] * state_RBX[:-1]
        if ctx.passes is not None:
            product = product * ctx.passes[1:, :, None, None]
        grad_decay = product.sum((0, 1)) * torch.exp(log_decay_X)
        return grad_own, grad_decay, None


def _shifted(passes_RB: torch.Tensor) -> torch.Tensor:
    """Whether the next block is passed to."""
    return torch.cat([passes_RB[1:], torch.zeros_like(passes_RB[:1])])


def hand_on(
    own_RBX: torch.Tensor, log_decay_X: torch.Tensor, passes_RB: torch.Tensor | None
) -> torch.Tensor:
    """u_r = own_r + passes_r * decay * u_(r-1), in a few steps for any number of blocks.

    Args:
        own_RBX: (R, B, ...).
        log_decay_X: (...) logarithm of the decay from block to block.
        passes_RB: (R, B) 0 or 1; None for 1.

    Returns:
        (R, B, ...).
    """
    count = len(own_RBX)
    if count <= FAN:
        return _one_by_one(own_RBX.clone(), log_decay_X, passes_RB, axis=0)
    fill = -count % FAN
    state = torch.cat([own_RBX, own_RBX.new_zeros(fill, *own_RBX.shape[1:])])
    state = state.unflatten(0, (-1, FAN))
    passes = None
    if passes_RB is not None:
        passes = F.pad(passes_RB, (0, 0, 0, fill)).unflatten(0, (-1, FAN))
    _one_by_one(state, log_decay_X, passes, axis=1)
    through = None if passes is None else passes.cumprod(1)
    carried = hand_on(state[:, -1], log_decay_X * FAN, None if through is None else through[:, -1])[
        :-1
    ]
    step = torch.arange(1, FAN + 1, device=state.device, dtype=state.dtype)
    decay = torch.exp(log_decay_X * step.view(-1, *[1] * log_decay_X.dim()))[:, None]
    for place in range(FAN):
        added = carried * decay[place]
        if through is not None:
            added *= through[1:, place].view(*carried.shape[:2], *[1] * log_decay_X.dim())
        state[1:, place] += added
    return state.flatten(0, 1)[:count]


def _one_by_one(
    state: torch.Tensor, log_decay_X: torch.Tensor, passes: torch.Tensor | None, axis: int
) -> torch.Tensor:
    """Goes along an axis in place."""
    decay = torch.exp(log_decay_X)
    steps = state.unbind(axis)
    gates = None if passes is None else passes.unbind(axis)
    for number in range(1, len(steps)):
        added = steps[number - 1] * decay
        if gates is not None:
            gate = gates[number]
            added *= gate.view(*gate.shape, *[1] * log_decay_X.dim())
        steps[number].add_(added)
    return state


@torch.no_grad()
def state_after(
    x_BLD: torch.Tensor, log_decay_DN: torch.Tensor, state_BDN: torch.Tensor | None
) -> torch.Tensor:
    """h after some positions of one document each row: (B, D, N).

    Args:
        x_BLD: (B, L, D) the positions.
        log_decay_DN: (D, N) of the averages over earlier positions.
        state_BDN: h before them; None for nothing.
    """
    dtype = compute_dtype(x_BLD)
    for start in range(0, x_BLD.shape[1], BLOCK):
        x_BKD = x_BLD[:, start : start + BLOCK].to(dtype)
        size = x_BKD.shape[1]
        left_K = torch.arange(size, device=x_BLD.device, dtype=dtype).flip(0)
        power_DNK = torch.exp(log_decay_DN.to(dtype)[..., None] * left_K)
        own_BDN = torch.einsum("bkd,dnk->bdn", x_BKD, power_DNK)
        if state_BDN is not None:
            own_BDN = own_BDN + state_BDN * torch.exp(log_decay_DN.to(dtype) * size)
        state_BDN = own_BDN
    assert state_BDN is not None
    return state_BDN
