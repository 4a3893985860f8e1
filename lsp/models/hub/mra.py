"""Multi-resolution attention (MRA) in torch.

The published model computes it by a CUDA kernel alone, and gives zeros where there is none. This
is the same attention after the paper (2207.10284, sections 3 and 4), with the published choice of
blocks: scores of whole blocks of 32 x 32 positions are estimated from the means of their queries
and keys, the blocks with the highest estimates are computed exactly, and the others by the
estimate (`full`) or not at all (`sparse`). Where all blocks are chosen it is dense attention.

Padding counts for nothing, in the choice of blocks neither, where the published kernel takes the
maximum of the estimates before it masks padding; without padding both are the same.

Letters beside those of `lsp.core.batch`: G rows times heads, C blocks of a row, K positions of a
block, M chosen blocks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from lsp.models.hub.documents import Documents, replace_forward

BLOCK = 32
FIRST = 5e3
"""Added to the estimates of blocks that are always chosen first."""
NEVER = 1e4
"""Subtracted from those of padding, and from scores that do not count."""
SMALL = 1e-6


def prepare(model: nn.Module, documents: Documents) -> None:
    """Has the attention of an MRA model compute what its kernel would, document by document."""
    from transformers.models.mra.modeling_mra import MraSelfAttention

    for module in model.modules():
        if isinstance(module, MraSelfAttention):
            replace_forward(module, _forward, documents)


def row_length(count: int) -> int:
    """Whole blocks for a document of so many tokens."""
    return -(-count // BLOCK) * BLOCK


def _forward(
    module: Any,
    documents: Documents,
    hidden_BLD: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor]:
    """The published self attention around `attend`."""
    heads, size = module.num_attention_heads, module.attention_head_size
    q, k, v = (
        project(hidden_BLD).unflatten(-1, (heads, size))
        for project in (module.query, module.key, module.value)
    )

    def attended(*given: torch.Tensor) -> torch.Tensor:
        *qkv_SKNH, real_SK = given
        q_GLH, k_GLH, v_GLH = (x.transpose(1, 2).flatten(0, 1).float() for x in qkv_SKNH)
        out_GLH = attend(
            q_GLH,
            k_GLH,
            v_GLH,
            real_SK.repeat_interleave(heads, dim=0),
            blocks=module.num_block,
            # The kernel's heads are at least 32 wide: narrower ones it pads, and scales by that.
            scale=max(size, BLOCK) ** -0.5,
            coarse=module.approx_mode == "full",
            first_blocks=module.initial_prior_first_n_blocks,
            diagonal_blocks=module.initial_prior_diagonal_n_blocks,
        )
        return out_GLH.unflatten(0, (-1, heads)).transpose(1, 2)

    if documents.fits(hidden_BLD.shape):
        out_BLNH = documents.each(attended, [q, k, v], row_length)
    else:
        out_BLNH = attended(q, k, v, torch.ones_like(hidden_BLD[..., 0], dtype=torch.bool))
    return (out_BLNH.flatten(2).to(hidden_BLD.dtype),)


def attend(
    q_GLH: torch.Tensor,
    k_GLH: torch.Tensor,
    v_GLH: torch.Tensor,
    real_GL: torch.Tensor,
    *,
    blocks: int,
    scale: float,
    coarse: bool = True,
    first_blocks: int = 0,
    diagonal_blocks: int = 0,
) -> torch.Tensor:
    """Attention with some blocks of scores exact and the others by their estimates: (G, L, H).

    Args:
        q_GLH: Queries; L is a multiple of `BLOCK`.
        k_GLH: Keys.
        v_GLH: Values.
        real_GL: False for padding.
        blocks: How many blocks of scores are exact; all where there are no more.
        scale: Of the scores.
        coarse: Whether the others take part by their estimates.
        first_blocks: So many first rows and columns of blocks are chosen before others.
        diagonal_blocks: So many blocks around the diagonal are, in each row of blocks.
    """
    length = q_GLH.shape[1]
    assert length % BLOCK == 0, f"{length} positions are not whole blocks of {BLOCK}"
    real_GL1 = real_GL[..., None].to(q_GLH.dtype)
    q_GCKH, k_GCKH, v_GCKH, real_GCK1 = (
        x.unflatten(1, (-1, BLOCK))
        for x in (q_GLH * real_GL1, k_GLH * real_GL1, v_GLH * real_GL1, real_GL1)
    )
    count_GC = real_GCK1.sum((2, 3))
    q_GCH, k_GCH, v_GCH = (
        x.sum(2) / (count_GC[..., None] + (count_GC[..., None] == 0))
        for x in (q_GCKH, k_GCKH, v_GCKH)
    )
    empty_GCC = (count_GC[:, :, None] * count_GC[:, None, :]) == 0
    estimate_GCC = (q_GCH @ k_GCH.mT * scale).masked_fill(empty_GCC, -NEVER)
    top_GC1 = estimate_GCC.amax(-1, keepdim=True)
    chosen_GM = _choose(
        (estimate_GCC - top_GC1).detach(), empty_GCC, blocks, first_blocks, diagonal_blocks
    )

    groups, number = count_GC.shape
    row_GM = chosen_GM // number + number * torch.arange(groups, device=q_GLH.device)[:, None]
    column_GM = chosen_GM % number + number * torch.arange(groups, device=q_GLH.device)[:, None]
    row_M, column_M = row_GM.flatten(), column_GM.flatten()
    q_MKH = q_GCKH.flatten(0, 1)[row_M]
    k_MKH, v_MKH = (x.flatten(0, 1)[column_M] for x in (k_GCKH, v_GCKH))
    seen_M1K = real_GCK1.flatten(0, 1)[column_M].mT
    scores_MKK = (q_MKH @ k_MKH.mT * scale).masked_fill(seen_M1K == 0, -torch.inf)
    highest_XK = scores_MKK.new_full((groups * number, BLOCK), -NEVER)
    index_MK = row_M[:, None].expand(-1, BLOCK)
    highest_XK = highest_XK.scatter_reduce(0, index_MK, scores_MKK.detach().amax(-1), "amax")
    weights_MKK = (scores_MKK - highest_XK[row_M][..., None]).exp()
    fine_XKH = torch.zeros_like(q_GCKH.flatten(0, 1)).index_add(0, row_M, weights_MKK @ v_MKH)
    norm_XK = torch.zeros_like(highest_XK).index_add(0, row_M, weights_MKK.sum(-1))
    fine_GCKH, norm_GCK = (x.unflatten(0, (groups, number)) for x in (fine_XKH, norm_XK))
    if coarse:
        exact_GCC = torch.zeros_like(empty_GCC).flatten(1).scatter(1, chosen_GM, True)
        left_out_GCC = exact_GCC.view_as(empty_GCC) | empty_GCC
        weights_GCC = (estimate_GCC - top_GC1).exp().masked_fill(left_out_GCC, 0.0)
        weights_GCC = weights_GCC * count_GC[:, None, :]
        # Both parts are relative to their own highest score; the lower one is scaled down.
        above_GCK = top_GC1 - highest_XK.unflatten(0, (groups, number))
        down, up = above_GCK.clamp(max=0).exp(), (-above_GCK.clamp(min=0)).exp()
        fine_GCKH = fine_GCKH * up[..., None] + (weights_GCC @ v_GCH)[:, :, None] * down[..., None]
        norm_GCK = norm_GCK * up + weights_GCC.sum(-1)[:, :, None] * down
    out_GCKH = fine_GCKH / (norm_GCK[..., None] + SMALL)
    return out_GCKH.flatten(1, 2) * real_GL1


def _choose(
    estimate_GCC: torch.Tensor,
    empty_GCC: torch.Tensor,
    blocks: int,
    first_blocks: int,
    diagonal_blocks: int,
) -> torch.Tensor:
    """Numbers of the blocks that are exact, row after row of blocks: (G, M)."""
    number = estimate_GCC.shape[-1]
    place_C = torch.arange(number, device=estimate_GCC.device)
    if diagonal_blocks > 0:
        near_CC = (place_C[:, None] - place_C[None, :]).abs() <= diagonal_blocks // 2
        estimate_GCC = estimate_GCC + near_CC * FIRST
    if first_blocks > 0:
        first_C = place_C < first_blocks
        estimate_GCC = estimate_GCC + (first_C[:, None].long() + first_C[None, :].long()) * FIRST
    estimate_GCC = estimate_GCC.masked_fill(empty_GCC, -math.inf)
    return estimate_GCC.flatten(1).topk(min(blocks, number * number), sorted=False).indices
