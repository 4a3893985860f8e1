"""Locality-sensitive-hashing attention (Reformer, 2001.04451, section 2).

Tokens are hashed by random rotations, sorted by bucket, cut into chunks, and attend inside their
chunk and its neighbours. Queries and keys share one projection; keys are normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import isqrt, prod

import numpy as np
import torch

from lsp.core.errors import require
from lsp.models.layers.chunks import Settings, Window, check_chunks, documents
from lsp.models.layers.lsh_kernel import LSHAttention

ROTATED_AT_ONCE = 2**19  # numbers: they fit the cache of a CPU core, and a GPU is busy with them


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
    first_head: int = 0,
    of_heads: int | None = None,
) -> torch.Tensor:
    """Hashes the shared query-key vectors (2001.04451, section 2; 1509.02897).

    Args:
        qk_BNLH: (B, N, L, H) shared queries and keys.
        num_buckets: An even number, or the even factors of it.
        num_hashes: Rounds of hashing.
        seed: Of the rotations; the configured `hash_seed`, or one drawn by the caller per step.
        segment_ids_BL: (B, L) document numbers; padding (0) gets a bucket of its own, the last.
        first_head: Number of the first head in `qk_BNLH`, where it holds a group of the layer's.
        of_heads: Heads of the layer, so that a head's rotations do not depend on the grouping.

    Returns:
        (B, N, R, L) bucket numbers in the smallest integer type that holds them.

    Raises:
        UserError: A number of buckets is not even and positive.
    """
    factors = [num_buckets] if isinstance(num_buckets, int) else list(num_buckets)
    require(
        all(factor > 0 and factor % 2 == 0 for factor in factors),
        f"num_buckets={num_buckets} has to be even, or even factors, such as 64 or [16, 32]",
    )
    batch, num_heads, length, head_size = qk_BNLH.shape
    rotations_NHRS = random_rotations(
        of_heads or num_heads, head_size, num_hashes, sum(factors), seed=seed, dtype=qk_BNLH.dtype
    )[first_head : first_head + num_heads].to(qk_BNLH.device)
    padding_bucket = prod(factors)
    buckets_BNRL = torch.empty(
        (batch, num_heads, num_hashes, length),
        dtype=bucket_dtype(padding_bucket),
        device=qk_BNLH.device,
    )
    # The rotated vectors are several times longer than the vectors: only some exist at once.
    parts = range(0, length, max(1, ROTATED_AT_ONCE // rotations_NHRS[0, 0].numel()))
    for row, head, start in product(range(batch), range(num_heads), parts):
        part = slice(start, start + parts.step)
        rotated_PM = qk_BNLH[row, head, part] @ rotations_NHRS[head].flatten(1)
        rotated_PRS = rotated_PM.unflatten(1, (num_hashes, -1))
        buckets_BNRL[row, head, :, part] = _nearest(rotated_PRS, factors).T
    if segment_ids_BL is not None:
        buckets_BNRL.masked_fill_((segment_ids_BL == 0)[:, None, None, :], padding_bucket)
    return buckets_BNRL


def _nearest(rotated_PRS: torch.Tensor, factors: list[int]) -> torch.Tensor:
    """Bucket numbers of rotated vectors (P, R, S): (P, R) int64."""
    bucket_PR = torch.zeros(rotated_PRS.shape[:2], dtype=torch.int64, device=rotated_PRS.device)
    stride = 1
    sizes = [factor // 2 for factor in factors]
    for factor, part in zip(factors, rotated_PRS.split(sizes, dim=-1), strict=True):
        # The argmax over [part, -part], without building it.
        index_PR1 = part.abs().max(dim=-1, keepdim=True).indices
        opposite_PR1 = part.gather(-1, index_PR1) < 0
        digit = torch.where(opposite_PR1, index_PR1 + factor // 2, index_PR1)[..., 0]
        bucket_PR += stride * digit
        stride *= factor
    return bucket_PR


def sorted_order(buckets_BNRL: torch.Tensor, document_BL: torch.Tensor | None) -> torch.Tensor:
    """Positions sorted by document, then bucket, then position: (B, N, R, L) int32.

    A document fills the same slots here as in the row, so that where chunks begin in it does not
    depend on what its neighbours contain.
    """
    length = buckets_BNRL.shape[-1]
    key_BNRL = buckets_BNRL.long()
    if document_BL is not None:
        key_BNRL = key_BNRL + document_BL[:, None, None, :] * (key_BNRL.max() + 1)
    if key_BNRL.device.type != "cpu":
        return key_BNRL.argsort(dim=-1, stable=True).int()
    # NumPy sorts plain integers some thirty times faster than torch sorts with indices, so the
    # position goes into the lowest bits.
    packed = key_BNRL * length + torch.arange(length)
    return torch.from_numpy(np.sort(packed.numpy(), axis=-1)).remainder_(length).int()


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

    No weight ever falls on another document or, when causal, on a later token. Inside one document
    something of the future remains, as in the published model: a later token takes a place in the
    sorted order, and so decides which earlier keys fall into a query's chunks. No value passes that
    way, but the choice of keys does; `benchmarks/lsh_leak.py` measures how often it changes, and
    by how much. Between documents not even that: each keeps its own slots.

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
    document_BL = padding_BL = None
    if segment_ids_BL is not None:
        document_BL, padding_BL = documents(segment_ids_BL), segment_ids_BL == 0
    if length <= chunk_length:
        window = Window(length, 0, 0)
        order_BNRL = torch.arange(length, dtype=torch.int32, device=qk_BNLH.device)
        order_BNRL = order_BNRL.expand(batch, heads, 1, length)
    else:
        assert buckets_BNRL is not None, "a sequence longer than a chunk needs buckets"
        window = Window(chunk_length, chunks_before, chunks_after)
        order_BNRL = sorted_order(buckets_BNRL, document_BL)
    settings = Settings(window, causal, dropout, dropout_seed)
    return LSHAttention.apply(qk_BNLH, v_BNLH, order_BNRL, document_BL, padding_BL, settings)
