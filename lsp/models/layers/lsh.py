"""Locality-sensitive-hashing attention (Reformer, 2001.04451, section 2).

Tokens are hashed by random rotations, sorted by bucket, cut into chunks, and attend inside their
chunk and its neighbours. Queries and keys share one projection; keys are normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod

import torch

from lsp.core.errors import require
from lsp.models.layers.chunked_attention import (
    MASKED_SCORE,
    SELF_SCORE,
    check_chunks,
    documents,
    windows,
)


def automatic_num_buckets(
    sequence_length: int, chunk_length: int, max_position_embeddings: int
) -> int | list[int]:
    """Number of buckets that the published model chooses when none is configured.

    About two buckets per chunk, as a power of two; factorised in two when that is large.
    """
    power = (2 * (sequence_length // chunk_length)).bit_length() - 1
    limit = 2 * max(isqrt(max_position_embeddings // chunk_length), chunk_length)
    if 2**power > limit:
        return [2 ** (power // 2), 2 ** (power - power // 2)]
    return 2**power


def bucket_dtype(num_buckets: int) -> torch.dtype:
    """Smallest integer type for bucket numbers 0..num_buckets (the last is padding's)."""
    for dtype in (torch.uint8, torch.int16):
        if num_buckets <= torch.iinfo(dtype).max:
            return dtype
    return torch.int32


def random_rotations(
    num_heads: int,
    head_size: int,
    num_hashes: int,
    rotation_size: int,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Random rotations of every head and round: (N, H, R, rotation_size // 2).

    Drawn on the CPU, so that they are the same on every device, from a generator of their own:
    the global one is not touched. A seed gives the numbers that the published model draws after
    `torch.manual_seed(seed)`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (num_heads, head_size, num_hashes, rotation_size // 2)
    return torch.randn(shape, generator=generator, dtype=dtype).to(device)


@torch.no_grad()
def hash_buckets(
    qk_BNLH: torch.Tensor,
    num_buckets: int | Sequence[int],
    num_hashes: int,
    *,
    seed: int,
    segment_ids_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hashes the shared query-key vectors (2001.04451, section 2; 1509.02897).

    Args:
        qk_BNLH: (B, N, L, H) shared queries and keys.
        num_buckets: An even number, or the even factors of it.
        num_hashes: Rounds of hashing.
        seed: Of the rotations; the configured `hash_seed`, or one drawn by the caller per step.
        segment_ids_BL: (B, L) document numbers; padding (0) gets a bucket of its own, the last.

    Returns:
        (B, N, R, L) bucket numbers in the smallest integer type that holds them.

    Raises:
        UserError: A number of buckets is not even and positive.
    """
    factors = [num_buckets] if isinstance(num_buckets, int) else list(num_buckets)
    require(
        all(factor > 0 and factor % 2 == 0 for factor in factors),
        f"num_buckets={num_buckets} has to be even, or factors that are even, such as 64 or [16, 32]",
    )
    num_heads, head_size = qk_BNLH.shape[1], qk_BNLH.shape[3]
    rotations_NHRS = random_rotations(
        num_heads, head_size, num_hashes, sum(factors), seed=seed, dtype=qk_BNLH.dtype
    ).to(qk_BNLH.device)
    rotated_BNRLS = torch.einsum("bnlh,nhrs->bnrls", qk_BNLH, rotations_NHRS)
    buckets_BNRL = torch.zeros(
        rotated_BNRLS.shape[:-1], dtype=torch.int64, device=rotated_BNRLS.device
    )
    stride = 1
    for factor, part in zip(
        factors, rotated_BNRLS.split([factor // 2 for factor in factors], dim=-1), strict=True
    ):
        # argmax over [part, -part] without building it.
        highest, lowest = part.max(dim=-1), part.min(dim=-1)
        bucket = torch.where(
            -lowest.values > highest.values, lowest.indices + factor // 2, highest.indices
        )
        buckets_BNRL += stride * bucket
        stride *= factor
    total = prod(factors)
    if segment_ids_BL is not None:
        buckets_BNRL.masked_fill_((segment_ids_BL == 0)[:, None, None, :], total)
    return buckets_BNRL.to(bucket_dtype(total))


def lsh_attention(
    qk_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    buckets_BNRL: torch.Tensor | None,
    *,
    chunk_length: int,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool,
    segment_ids_BL: torch.Tensor | None = None,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
) -> torch.Tensor:
    """LSH attention over sorted chunks, all rounds in one softmax (2001.04451, section 2).

    Args:
        qk_BNLH: (B, N, L, H) shared queries and keys, as projected.
        v_BNLH: (B, N, L, H) values.
        buckets_BNRL: (B, N, R, L) from `hash_buckets`; may be None where L <= chunk_length, since
            attention is then over the whole sequence.
        chunk_length: Positions in a chunk of the sorted order.
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
    batch, heads, length, _ = qk_BNLH.shape
    check_chunks("lsh_attn_chunk_length", length, chunk_length)
    document_BL = pad_BL = None
    if segment_ids_BL is not None:
        document_BL, pad_BL = documents(segment_ids_BL), segment_ids_BL == 0
    if length <= chunk_length:
        chunk_length, chunks_before, chunks_after = length, 0, 0
        order_BNRL = torch.arange(length, device=qk_BNLH.device).expand(batch, heads, 1, length)
    else:
        key = buckets_BNRL.long()
        if document_BL is not None:
            key = key + document_BL[:, None, None, :].long() * (key.max() + 1)
        order_BNRL = key.argsort(dim=-1, stable=True)
    rounds = order_BNRL.shape[2]
    order_BNS = order_BNRL.reshape(batch, heads, -1)

    def chunked(x_BNLX: torch.Tensor) -> torch.Tensor:
        index = order_BNS[..., None].expand(*order_BNS.shape, x_BNLX.shape[-1])
        return x_BNLX.gather(2, index).unflatten(2, (-1, chunk_length))

    scale = torch.rsqrt(qk_BNLH.float().square().mean(-1, keepdim=True) + 1e-6)
    k_BNLH = (qk_BNLH * scale).to(qk_BNLH.dtype) / qk_BNLH.shape[-1] ** 0.5
    q, k, v = chunked(qk_BNLH), chunked(k_BNLH), chunked(v_BNLH)
    k, v = windows(k, chunks_before, chunks_after), windows(v, chunks_before, chunks_after)
    position = order_BNS.unflatten(2, (-1, chunk_length))
    key_position = windows(position, chunks_before, chunks_after)
    scores = (q @ k.transpose(-1, -2)).float()
    if causal:
        scores = scores.masked_fill(position[..., None] < key_position[..., None, :], MASKED_SCORE)
    if document_BL is not None:
        document = chunked(document_BL[:, None, :, None].expand(-1, heads, -1, 1))
        pad = chunked(pad_BL[:, None, :, None].expand(-1, heads, -1, 1))
        key_document = windows(document, chunks_before, chunks_after).transpose(-1, -2)
        key_pad = windows(pad, chunks_before, chunks_after).transpose(-1, -2)
        scores = scores.masked_fill(key_pad, MASKED_SCORE)
        scores = scores.masked_fill(document != key_document, -torch.inf)
    scores = scores.masked_fill(position[..., None] == key_position[..., None, :], SELF_SCORE)
    lse = scores.logsumexp(-1, keepdim=True)
    weights = (scores - lse).exp()
    if dropout > 0:
        assert dropout_seed is not None
        generator = torch.Generator(device=weights.device).manual_seed(dropout_seed)
        keep = torch.empty_like(weights).bernoulli_(1 - dropout, generator=generator)
        weights = weights * keep / (1 - dropout)
    out = (weights.to(v.dtype) @ v).flatten(2, 3)
    undo = order_BNRL.argsort(dim=-1)
    undo_BNS = (undo + torch.arange(rounds, device=undo.device)[:, None] * length).flatten(2)
    out = out.gather(2, undo_BNS[..., None].expand_as(out)).unflatten(2, (rounds, length))
    lse = lse.flatten(2).gather(2, undo_BNS).unflatten(2, (rounds, length))[..., None]
    share = (lse - lse.logsumexp(2, keepdim=True)).exp()
    return (out * share).sum(2).to(v_BNLH.dtype)
