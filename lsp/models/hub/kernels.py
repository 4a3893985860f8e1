"""Attention within documents by the kernels that CUDA has for it.

FlexAttention gets the blocks of scores in which any key is seen, found from where documents begin
and end, and variable-length flash attention the ends of the documents themselves. Both give what
`each_document` gives.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.weak import WeakIdKeyDictionary

from lsp.core.errors import UserError
from lsp.models.hub.attention import QUERIES, each_document, layout_of

BLOCK = 128
"""Positions of a block of scores."""

_BLOCK_MASKS: Any = WeakIdKeyDictionary()


def flex(
    q_BNLH: torch.Tensor,
    k_BNKH: torch.Tensor,
    v_BNKH: torch.Tensor,
    documents_B13M: torch.Tensor,
    scale: float,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """FlexAttention; cross attention, and what is dropped at random, document by document.

    Raises:
        UserError: It is to be differentiated on a CPU.
    """
    if q_BNLH.requires_grad and not q_BNLH.is_cuda:
        raise UserError(
            "architecture.attention=flex_attention has no gradients on a CPU: use "
            "architecture.attention=auto"
        )
    if dropout or not layout_of(documents_B13M).own:
        return each_document(q_BNLH, k_BNKH, v_BNKH, documents_B13M, scale, dropout, window)
    masks = _BLOCK_MASKS.setdefault(documents_B13M, {})
    if window not in masks:
        masks[window] = block_mask(documents_B13M, window)
    attend = _compiled() if q_BNLH.is_cuda else flex_attention
    grouped = q_BNLH.shape[1] != k_BNKH.shape[1]
    out: Any = attend(
        q_BNLH, k_BNKH, v_BNKH, block_mask=masks[window], scale=scale, enable_gqa=grouped
    )
    return out  # type: ignore[no-any-return]


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


def block_mask(documents_B13M: torch.Tensor, window: int | None = None) -> BlockMask:
    """The blocks of scores to compute, without ever making all scores' mask.

    Args:
        documents_B13M: Of self attention.
        window: How many positions up to itself a causal position sees; None for all.
    """
    numbers_BL = documents_B13M[:, 0, QUERIES]
    causal = layout_of(documents_B13M).causal
    length = numbers_BL.shape[1]
    # Runs count up along a row, so that a block has all those from its first to its last.
    runs_BL = F.pad((numbers_BL.diff(dim=1) != 0).long().cumsum(1), (1, 0))
    # Behind the row is a run of its own, so that no block with a part of it counts as one run.
    behind_BK = runs_BL[:, -1:].expand(-1, -length % BLOCK) + 1
    runs_BCK = torch.cat([runs_BL, behind_BK], dim=1).unflatten(1, (-1, BLOCK))
    low_BC, high_BC = runs_BCK[:, :, 0], runs_BCK[:, :, -1]
    place_C = torch.arange(low_BC.shape[1], device=low_BC.device)
    distance_CC = (place_C[:, None] - place_C[None, :]) * BLOCK  # of the blocks' beginnings
    touches = (low_BC[:, :, None] <= high_BC[:, None, :]) & (
        low_BC[:, None, :] <= high_BC[:, :, None]
    )
    one_run = (low_BC[:, :, None] == high_BC[:, None, :]) & (
        low_BC[:, None, :] == high_BC[:, :, None]
    )
    if causal:
        touches, one_run = touches & (distance_CC >= 0), one_run & (distance_CC >= BLOCK)
        if window is not None:
            touches = touches & (distance_CC - BLOCK < window)
            one_run = one_run & (distance_CC + BLOCK <= window)

    def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
        here = runs_BL[batch, query] == runs_BL[batch, key]
        if causal:
            here = here & (query >= key)
            if window is not None:
                here = here & (query - key < window)
        return here

    return BlockMask.from_kv_blocks(
        *_listed(touches & ~one_run),
        *_listed(one_run),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(length, length),
    )


def _listed(blocks_BCC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each row of blocks has, and which, first: (B, 1, C), (B, 1, C, C)."""
    chosen = blocks_BCC[:, None].int()
    order = chosen.argsort(dim=-1, descending=True, stable=True).int()
    return chosen.sum(-1, dtype=torch.int32), order.contiguous()


def varlen(
    q_BNLH: torch.Tensor,
    k_BNKH: torch.Tensor,
    v_BNKH: torch.Tensor,
    documents_B13M: torch.Tensor,
    scale: float,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """Flash attention 2 over all documents of the batch at once; cross attention one by one.

    Raises:
        UserError: The numbers are in four bytes.
    """
    layout = layout_of(documents_B13M)
    if not layout.own:
        return each_document(q_BNLH, k_BNKH, v_BNKH, documents_B13M, scale, dropout, window)
    if q_BNLH.dtype not in (torch.float16, torch.bfloat16):
        raise UserError(
            "architecture.attention=flash_attention_2 computes in two bytes: use precision=bf16 "
            "or fp16, or architecture.attention=auto"
        )
    rows = q_BNLH.shape[0]
    q_TNH, k_TNH, v_TNH = (x.transpose(1, 2).flatten(0, 1) for x in (q_BNLH, k_BNKH, v_BNKH))
    sizes = torch.tensor((0, *layout.queries), dtype=torch.int32)
    ends = sizes.cumsum(0, dtype=torch.int32).to(q_BNLH.device, non_blocking=True)
    longest = max(layout.queries)
    out_TNH: torch.Tensor = flash_attention()(
        q_TNH,
        k_TNH,
        v_TNH,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        dropout_p=dropout,
        softmax_scale=scale,
        causal=layout.causal,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )
    return out_TNH.unflatten(0, (rows, layout.length)).transpose(1, 2)


def flash_attention() -> Any:
    """The kernel's function.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module("flash_attn").flash_attn_varlen_func
    except ImportError as error:
        raise UserError(
            "architecture.attention=flash_attention_2 needs the package flash-attn, which is not "
            "installed: use architecture.attention=auto"
        ) from error
