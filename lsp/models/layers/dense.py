"""Plain twins of the fast attentions, with explicit (L × L) masks: for tests, not for training.

They share nothing with the fast versions but the published constants and `documents`.
"""

from __future__ import annotations

import torch

from lsp.models.layers.chunked_attention import MASKED_SCORE, SELF_SCORE
from lsp.models.layers.chunks import documents


def chunk_sight(
    order_S: torch.Tensor, length: int, chunk_length: int, before: int, after: int
) -> torch.Tensor:
    """How many times each query meets each key on a ring of chunks: (L, L).

    Args:
        order_S: Positions in the order of the ring; in LSH attention, one round after another.
        length: L.
        chunk_length: Positions in a chunk.
        before: Chunks seen before a query's own.
        after: Chunks seen after it.
    """
    sight_LL = torch.zeros(length, length, dtype=torch.int64, device=order_S.device)
    chunks_CK = order_S.view(-1, chunk_length)
    for shift in range(-before, after + 1):
        keys_CK = chunks_CK.roll(-shift, dims=0)
        pairs_CKK = chunks_CK[:, :, None] * length + keys_CK[:, None, :]
        ones = torch.ones_like(pairs_CKK).flatten()
        sight_LL.view(-1).index_add_(0, pairs_CKK.flatten(), ones)
    return sight_LL


def dense_lsh_attention(
    qk_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    buckets_BNRL: torch.Tensor | None,
    *,
    chunk_length: int,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool,
    segment_ids_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """`lsh_attention` as one softmax over everything that any round shows."""
    batch, heads, length, size = qk_BNLH.shape
    if length <= chunk_length:
        sight = torch.ones(batch, heads, length, length, device=qk_BNLH.device)
    else:
        assert buckets_BNRL is not None
        key_BNRL = buckets_BNRL.long()
        if segment_ids_BL is not None:
            key_BNRL = key_BNRL + documents(segment_ids_BL)[:, None, None] * 2**20
        order_BNS = key_BNRL.argsort(dim=-1, stable=True).flatten(2)
        window = (length, chunk_length, chunks_before, chunks_after)
        sight = torch.stack([chunk_sight(o, *window) for o in order_BNS.flatten(0, 1)])
        sight = sight.view(batch, heads, length, length)
    k_BNLH = qk_BNLH * (qk_BNLH.square().mean(-1, keepdim=True) + 1e-6).rsqrt() / size**0.5
    scores = _mask(qk_BNLH @ k_BNLH.transpose(-1, -2), causal, segment_ids_BL)
    itself_LL = torch.eye(length, dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(itself_LL, SELF_SCORE)
    return (scores + sight.to(scores.dtype).log()).softmax(-1) @ v_BNLH


def dense_local_attention(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    *,
    chunk_length: int,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool,
    segment_ids_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """`local_attention` as one softmax over the whole row."""
    length, size = q_BNLH.shape[2:]
    order_L = torch.arange(length, device=q_BNLH.device)
    if length <= chunk_length:
        chunk_length, chunks_before, chunks_after = length, 0, 0
    sight_LL = chunk_sight(order_L, length, chunk_length, chunks_before, chunks_after)
    scores = q_BNLH @ k_BNLH.transpose(-1, -2) / size**0.5
    return (_mask(scores, causal, segment_ids_BL) + sight_LL.to(scores.dtype).log()).softmax(
        -1
    ) @ v_BNLH


def _mask(
    scores_BNLL: torch.Tensor, causal: bool, segment_ids_BL: torch.Tensor | None
) -> torch.Tensor:
    length = scores_BNLL.shape[-1]
    if causal:
        future_LL = torch.ones(length, length, dtype=torch.bool, device=scores_BNLL.device).triu(1)
        scores_BNLL = scores_BNLL.masked_fill(future_LL, MASKED_SCORE)
    if segment_ids_BL is not None:
        padding_BL, document_BL = segment_ids_BL == 0, documents(segment_ids_BL)
        other_BLL = document_BL[:, :, None] != document_BL[:, None, :]
        scores_BNLL = scores_BNLL.masked_fill(padding_BL[:, None, None, :], MASKED_SCORE)
        scores_BNLL = scores_BNLL.masked_fill(other_BLL[:, None], -torch.inf)
    return scores_BNLL


def dense_sliding_window_attention(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    *,
    before: int,
    after: int,
    segment_ids_BL: torch.Tensor | None = None,
    global_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """`sliding_window_attention` with an (L × L) mask."""
    length, size = q_BNLH.shape[2:]
    index_L = torch.arange(length, device=q_BNLH.device)
    distance_LL = index_L[None, :] - index_L[:, None]
    seen_BLL = ((distance_LL >= -before) & (distance_LL <= after))[None]
    if global_BL is not None:
        seen_BLL = seen_BLL | global_BL[:, None, :]
    if segment_ids_BL is not None:
        document_BL = documents(segment_ids_BL)
        seen_BLL = seen_BLL & (document_BL[:, :, None] == document_BL[:, None, :])
        seen_BLL = seen_BLL & (segment_ids_BL != 0)[:, None, :]
        # A padded query gives nothing; any sight keeps its softmax finite until then.
        seen_BLL = seen_BLL | (segment_ids_BL == 0)[:, :, None]
    scores_BNLL = q_BNLH @ k_BNLH.transpose(-1, -2) / size**0.5
    weights_BNLL = scores_BNLL.masked_fill(~seen_BLL[:, None], float("-inf")).softmax(-1)
    out_BNLH = weights_BNLL @ v_BNLH
    if segment_ids_BL is None:
        return out_BNLH
    return out_BNLH.masked_fill((segment_ids_BL == 0)[:, None, :, None], 0.0)
