"""Local attention: each chunk sees itself and its neighbours (2001.04451, section 5)."""

from __future__ import annotations

import torch

from lsp.models.layers.chunked_attention import MASKED_SCORE, check_chunks, documents, windows


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
) -> torch.Tensor:
    """Attention inside chunks and their neighbours on a ring.

    Args:
        q_BNLH: (B, N, L, H) queries, as projected: the scale 1/sqrt(H) is applied here.
        k_BNLH: (B, N, L, H) keys.
        v_BNLH: (B, N, L, H) values.
        chunk_length: Positions in a chunk; a sequence not longer than it is attended whole.
        chunks_before: Chunks before its own that a query sees.
        chunks_after: Chunks after its own that a query sees.
        causal: Whether a query sees no later position.
        segment_ids_BL: (B, L) 0 for padding, 1.. for documents, which never see each other.
        dropout: Probability of dropping an attention weight.
        dropout_seed: Required where dropout > 0: the same seed drops the same weights.

    Returns:
        (B, N, L, H) attention output in the dtype of the values.

    Raises:
        UserError: The chunk length does not divide a sequence that is longer than it.
    """
    length = q_BNLH.shape[2]
    check_chunks("local_attn_chunk_length", length, chunk_length)
    if length <= chunk_length:
        chunk_length, chunks_before, chunks_after = length, 0, 0

    def chunked(x_BNLX: torch.Tensor) -> torch.Tensor:
        return x_BNLX.unflatten(2, (-1, chunk_length))

    q, k, v = chunked(q_BNLH), chunked(k_BNLH), chunked(v_BNLH)
    k, v = windows(k, chunks_before, chunks_after), windows(v, chunks_before, chunks_after)
    scores = (q @ (k / q.shape[-1] ** 0.5).transpose(-1, -2)).float()
    position = chunked(torch.arange(length, device=q.device)[None, None, :, None])
    key_position = windows(position, chunks_before, chunks_after).transpose(-1, -2)
    if causal:
        scores = scores.masked_fill(position < key_position, MASKED_SCORE)
    if segment_ids_BL is not None:
        document = chunked(documents(segment_ids_BL)[:, None, :, None])
        pad = chunked((segment_ids_BL == 0)[:, None, :, None])
        key_document = windows(document, chunks_before, chunks_after).transpose(-1, -2)
        key_pad = windows(pad, chunks_before, chunks_after).transpose(-1, -2)
        scores = scores.masked_fill(key_pad, MASKED_SCORE)
        scores = scores.masked_fill(document != key_document, -torch.inf)
    weights = (scores - scores.logsumexp(-1, keepdim=True)).exp()
    if dropout > 0:
        assert dropout_seed is not None
        generator = torch.Generator(device=weights.device).manual_seed(dropout_seed)
        keep = torch.empty_like(weights).bernoulli_(1 - dropout, generator=generator)
        weights = weights * keep / (1 - dropout)
    return (weights.to(v.dtype) @ v).flatten(2, 3)
