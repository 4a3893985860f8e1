"""Attention weights in the layouts of the published models, for those who want to look at them.

The fast attentions never form these: here they are computed once more, plainly, beside them, and
take as much memory as they are large. No weight is dropped. G stands for the most global tokens
that a row of the batch has, S for slots of the sorted order, W for the keys that a query meets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lsp.models.layers.chunked_attention import MASKED_SCORE, SELF_SCORE
from lsp.models.layers.chunks import documents
from lsp.models.layers.lsh import sorted_order
from lsp.models.layers.relative_attention import Distances

QUERIES_AT_ONCE = 256  # of a window's map: more would compare more keys in vain


def window_map(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    *,
    before: int,
    after: int,
    gaps: Sequence[int],
    segment_ids_BL: torch.Tensor | None = None,
    global_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights of `sliding_window_attention`, as the Longformer publishes them.

    Args:
        q_BNLH: (B, N, L, H) queries.
        k_BNLH: (B, N, L, H) keys.
        before: Keys before its own that a query sees.
        after: Keys after its own that a query sees.
        gaps: Of each head: between the keys of its window.
        segment_ids_BL: (B, L) document numbers, 0 for padding.
        global_BL: (B, L) true for global tokens.

    Returns:
        (B, N, L, G + before + 1 + after): the global tokens of the row in their order, then the
        window from its first key to its last. 0 for a key that is global or not there, and for
        all keys of a padded or a global query, which does not attend this way.
    """
    batch, _, length, size = q_BNLH.shape
    lowest = torch.finfo(q_BNLH.dtype).min
    if segment_ids_BL is None:
        segment_ids_BL = q_BNLH.new_ones(batch, length, dtype=torch.int64)
    document_BL, padding_BL = documents(segment_ids_BL), segment_ids_BL == 0
    hidden_BL = padding_BL if global_BL is None else padding_BL | global_BL
    parts = []
    for head, gap in enumerate(gaps):
        edges = (before * gap, after * gap)
        k_BEH = F.pad(k_BNLH[:, head], (0, 0, *edges))
        # What lies beyond the ends of a row belongs to no document.
        document_BE = F.pad(document_BL.masked_fill(hidden_BL, -1), edges, value=-1)
        offset_W = torch.arange(before + 1 + after, device=q_BNLH.device) * gap
        rows = []
        for start in range(0, length, QUERIES_AT_ONCE):
            chunk = slice(start, min(start + QUERIES_AT_ONCE, length))
            keys = slice(start, chunk.stop + sum(edges))
            query_K = torch.arange(chunk.stop - start, device=q_BNLH.device)
            index_KW = query_K[:, None] + offset_W
            index_BKW = index_KW.expand(batch, -1, -1)
            scores_BKE = q_BNLH[:, head, chunk] @ k_BEH[:, keys].transpose(1, 2)
            scores_BKW = scores_BKE.gather(2, index_BKW) * size**-0.5
            seen_BKW = document_BE[:, keys][:, index_KW] == document_BL[:, chunk, None]
            rows.append(scores_BKW.masked_fill(~seen_BKW, lowest))
        parts.append(torch.cat(rows, dim=1))
    scores_BNLW = torch.stack(parts, dim=1)
    if global_BL is not None:
        index_BG, real_BG = global_tokens(global_BL)
        k_BNGH = k_BNLH.gather(2, index_BG[:, None, :, None].expand(-1, k_BNLH.shape[1], -1, size))
        scores_BNLG = q_BNLH @ k_BNGH.transpose(-1, -2) * size**-0.5
        seen_BLG = document_BL.gather(1, index_BG)[:, None, :] == document_BL[:, :, None]
        seen_BLG = seen_BLG & real_BG[:, None, :]
        scores_BNLG = scores_BNLG.masked_fill(~seen_BLG[:, None], lowest)
        scores_BNLW = torch.cat([scores_BNLG, scores_BNLW], dim=-1)
    weights_BNLW = _softmax(scores_BNLW)
    return weights_BNLW.masked_fill(hidden_BL[:, None, :, None], 0.0)


def global_map(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    *,
    global_BL: torch.Tensor,
    segment_ids_BL: torch.Tensor | None = None,
    window: int = 1,
) -> torch.Tensor:
    """Weights of `global_attention`, as the Longformer publishes them.

    Args:
        q_BNLH: (B, N, L, H) queries, those of global tokens from a projection of their own.
        k_BNLH: (B, N, L, H) keys for global tokens.
        global_BL: (B, L) true for global tokens.
        segment_ids_BL: (B, L) document numbers, 0 for padding.
        window: The published model pads rows to a multiple of this, and its maps with them.

    Returns:
        (B, N, padded L, G): what each key is to each global token of the row. Where a row has
        fewer than G, all keys weigh the same for those that are missing.
    """
    length, size = q_BNLH.shape[2:]
    index_BG, real_BG = global_tokens(global_BL)
    q_BNGH = q_BNLH.gather(2, index_BG[:, None, :, None].expand(-1, q_BNLH.shape[1], -1, size))
    scores_BNGL = q_BNGH @ k_BNLH.transpose(-1, -2) * size**-0.5
    seen_BGL = real_BG[:, :, None].expand(-1, -1, length)
    if segment_ids_BL is not None:
        document_BL = documents(segment_ids_BL)
        seen_BGL = seen_BGL & (document_BL.gather(1, index_BG)[..., None] == document_BL[:, None])
        seen_BGL = seen_BGL & (segment_ids_BL != 0)[:, None]
    lowest = torch.finfo(q_BNLH.dtype).min
    scores_BNGL = scores_BNGL.masked_fill(~seen_BGL[:, None], lowest)
    scores_BNGL = F.pad(scores_BNGL, (0, -length % window), value=lowest)
    return _softmax(scores_BNGL).transpose(-1, -2)


def global_tokens(global_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the global tokens of each row are, (B, G), and which of these are there at all."""
    count_B = global_BL.sum(1)
    most = int(count_B.max())
    # A stable sort brings them to the front in their order.
    index_BG = (~global_BL).int().argsort(dim=1, stable=True)[:, :most]
    return index_BG, torch.arange(most, device=global_BL.device) < count_B[:, None]


def local_map(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    *,
    chunk_length: int,
    chunks_before: int,
    chunks_after: int,
    causal: bool,
    segment_ids_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights of `local_attention`, as the Reformer publishes them.

    Returns:
        (B, N, C, K, W): for each query of each chunk, the keys of the chunks before, its own and
        those after, on a ring; (B, N, L, L) for a row of one chunk.
    """
    batch, heads, length, size = q_BNLH.shape
    order_BNL = torch.arange(length, device=q_BNLH.device).expand(batch, heads, length)
    scores, query, key = _chunk_scores(
        q_BNLH, k_BNLH * size**-0.5, order_BNL, chunk_length, chunks_before, chunks_after
    )
    return _shares(_mask(scores, query, key, causal, segment_ids_BL))


def lsh_map(
    qk_BNLH: torch.Tensor,
    buckets_BNRL: torch.Tensor | None,
    *,
    chunk_length: int,
    chunks_before: int,
    chunks_after: int,
    causal: bool,
    segment_ids_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights of `lsh_attention` within each round, as the Reformer publishes them.

    Returns:
        (B, N, R * C, K, W): as `local_map`, with the positions of each round in sorted order;
        (B, N, L, L) for a row of one chunk.
    """
    batch, heads, length, size = qk_BNLH.shape
    if buckets_BNRL is None:
        order_BNS = torch.arange(length, device=qk_BNLH.device).expand(batch, heads, length)
    else:
        document_BL = None if segment_ids_BL is None else documents(segment_ids_BL)
        order_BNS = sorted_order(buckets_BNRL, document_BL).long().flatten(2)
    k_BNLH = qk_BNLH * (qk_BNLH.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * size**-0.5
    scores, query, key = _chunk_scores(
        qk_BNLH, k_BNLH, order_BNS, chunk_length, chunks_before, chunks_after
    )
    scores = _mask(scores, query, key, causal, segment_ids_BL)
    return _shares(scores.masked_fill(query == key, SELF_SCORE))


def relative_map(
    q_BNLH: torch.Tensor,
    k_BNEH: torch.Tensor,
    *,
    reach: int | None = None,
    document_BE: torch.Tensor | None = None,
    distances: Distances | None = None,
) -> torch.Tensor:
    """Weights of `relative_attention`, as Transformer-XL publishes them.

    Args:
        q_BNLH: (B, N, L, H) queries.
        k_BNEH: (B, N, M + L, H) keys: of the memory, then of the row.
        reach: Largest distance that is seen; None for any.
        document_BE: (B, M + L) document of each key, -1 for what nobody sees.
        distances: How distances score; None where only keys do.

    Returns:
        (B, N, L, M + L); 0 for all keys of a query that nobody sees.
    """
    length, size, keys = q_BNLH.shape[2], q_BNLH.shape[3], k_BNEH.shape[2]
    index_E = torch.arange(keys, device=q_BNLH.device)
    distance_LE = index_E[keys - length :, None] - index_E
    seen_BLE = ((distance_LE >= 0) & (distance_LE <= (keys if reach is None else reach)))[None]
    query = q_BNLH
    if distances is not None and distances.u is not None:
        query = q_BNLH + distances.u[:, None]
    scores_BNLE = query @ k_BNEH.transpose(-1, -2)
    if distances is not None:
        query = q_BNLH if distances.w is None else q_BNLH + distances.w[:, None]
        met_BNLP = query @ distances.r.transpose(-1, -2)
        if distances.b is not None:
            met_BNLP = met_BNLP + distances.b[:, None]
        place_LE = distance_LE.clamp(0, met_BNLP.shape[-1] - 1)
        scores_BNLE = scores_BNLE + met_BNLP.gather(3, place_LE.expand_as(scores_BNLE))
    hidden_BL1 = None
    if document_BE is not None:
        own_BL1 = document_BE[:, keys - length :, None]
        seen_BLE = seen_BLE & (own_BL1 == document_BE[:, None])
        hidden_BL1 = own_BL1 < 0
    lowest = torch.finfo(scores_BNLE.dtype).min
    scores_BNLE = (scores_BNLE * size**-0.5).masked_fill(~seen_BLE[:, None], lowest)
    weights_BNLE = _softmax(scores_BNLE)
    return (
        weights_BNLE if hidden_BL1 is None else weights_BNLE.masked_fill(hidden_BL1[:, None], 0.0)
    )


def clipped_map(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    table_PH: torch.Tensor,
    *,
    causal: bool = False,
    document_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights of `clipped_attention`.

    Args:
        q_BNLH: (B, N, L, H) queries.
        k_BNLH: (B, N, L, H) keys.
        table_PH: (P, H) vectors of relative positions.
        causal: Whether later keys are hidden.
        document_BL: (B, L) document of each position, -1 for what nobody sees.

    Returns:
        (B, N, L, L); 0 for all keys of a query that nobody sees.
    """
    length, size, reach = *q_BNLH.shape[2:], len(table_PH) // 2
    index_L = torch.arange(length, device=q_BNLH.device)
    place_LL = (index_L - index_L[:, None]).clamp(-reach, reach) + reach
    scores_BNLL = q_BNLH @ k_BNLH.transpose(-1, -2)
    met_BNLP = q_BNLH @ table_PH.T
    scores_BNLL = scores_BNLL + met_BNLP.gather(3, place_LL.expand_as(scores_BNLL))
    seen_BLL = torch.ones_like(place_LL, dtype=torch.bool)[None]
    if causal:
        seen_BLL = seen_BLL.tril()
    hidden_BL1 = None
    if document_BL is not None:
        own_BL1 = document_BL[..., None]
        seen_BLL = seen_BLL & (own_BL1 == document_BL[:, None])
        hidden_BL1 = own_BL1 < 0
    lowest = torch.finfo(scores_BNLL.dtype).min
    weights = _softmax((scores_BNLL * size**-0.5).masked_fill(~seen_BLL[:, None], lowest))
    return weights if hidden_BL1 is None else weights.masked_fill(hidden_BL1[:, None], 0.0)


def _chunk_scores(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    order_BNS: torch.Tensor,
    chunk_length: int,
    before: int,
    after: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores (B, N, C, K, W) by chunk of an order, and the positions of queries and keys."""
    length, size = q_BNLH.shape[2:]
    index_BNSH = order_BNS[..., None].expand(-1, -1, -1, size)
    q_BNSH, k_BNSH = q_BNLH.gather(2, index_BNSH), k_BNLH.gather(2, index_BNSH)
    if length <= chunk_length:
        scores_BNLL = q_BNSH @ k_BNSH.transpose(-1, -2)
        return scores_BNLL, order_BNS[..., None], order_BNS[..., None, :]

    def chunks(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (-1, chunk_length))

    def around(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([chunks(x).roll(-by, dims=2) for by in range(-before, after + 1)], dim=3)

    scores_BNCKW = chunks(q_BNSH) @ around(k_BNSH).transpose(-1, -2)
    return scores_BNCKW, chunks(order_BNS)[..., None], around(order_BNS)[..., None, :]


def _mask(
    scores: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    causal: bool,
    segment_ids_BL: torch.Tensor | None,
) -> torch.Tensor:
    if causal:
        scores = scores.masked_fill(key > query, MASKED_SCORE)
    if segment_ids_BL is None:
        return scores
    document_BL = documents(segment_ids_BL)
    rows = torch.arange(len(scores), device=scores.device).view(-1, *[1] * (scores.dim() - 1))
    scores = scores.masked_fill((segment_ids_BL == 0)[rows, key], MASKED_SCORE)
    other = document_BL[rows, query] != document_BL[rows, key]
    return scores.masked_fill(other, float("-inf"))


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """In fp32 at least, whatever the scores are in."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(scores.dtype)


def _shares(scores: torch.Tensor) -> torch.Tensor:
    """A softmax as the Reformer publishes it.

    Where a query sees nothing but itself, the scores are so large that this is off by up to 0.4%.
    """
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return (wide - wide.logsumexp(-1, keepdim=True)).exp().to(scores.dtype)
