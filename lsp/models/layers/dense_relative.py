"""Plain twins of the attentions by relative position: for tests, not for training."""

from __future__ import annotations

import torch

from lsp.models.layers.relative_attention import Distances


def dense_relative_attention(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    *,
    reach: int | None = None,
    document_BE: torch.Tensor | None = None,
    remembered: tuple[torch.Tensor, torch.Tensor] | None = None,
    distances: Distances | None = None,
) -> torch.Tensor:
    """`relative_attention` as one softmax; every pair of a query and a key has its distance.

    Args:
        q_BNLH: (B, N, L, H) queries.
        k_BNLH: (B, N, L, H) keys.
        v_BNLH: (B, N, L, H) values.
        reach: Largest distance that is seen; None for any.
        document_BE: (B, E) document of each key, -1 for what nobody sees.
        remembered: Keys and values before the row.
        distances: How distances score.
    """
    if remembered is not None:
        k_BNLH = torch.cat([remembered[0], k_BNLH], dim=2)
        v_BNLH = torch.cat([remembered[1], v_BNLH], dim=2)
    length, size, keys = q_BNLH.shape[2], q_BNLH.shape[3], k_BNLH.shape[2]
    index_E = torch.arange(keys, device=q_BNLH.device)
    distance_LE = index_E[keys - length :, None] - index_E
    seen_BLE = ((distance_LE >= 0) & (distance_LE <= (keys if reach is None else reach)))[None]
    if document_BE is not None:
        own_BL1 = document_BE[:, keys - length :, None]
        # What nobody sees gives nothing; any sight keeps its softmax finite until then.
        seen_BLE = seen_BLE & (own_BL1 == document_BE[:, None]) & (own_BL1 >= 0) | (own_BL1 < 0)
    if distances is None:
        scores = q_BNLH @ k_BNLH.transpose(-1, -2)
    else:
        met_NLEH = distances.r[:, distance_LE.clamp(0, distances.r.shape[1] - 1)]
        u, w = (0.0 if x is None else x[:, None] for x in (distances.u, distances.w))
        scores = (q_BNLH + u) @ k_BNLH.transpose(-1, -2)
        scores = scores + torch.einsum("bnlh,nleh->bnle", q_BNLH + w, met_NLEH)
        if distances.b is not None:
            scores = scores + distances.b[:, distance_LE.clamp(0, distances.b.shape[1] - 1)]
    weights = (scores / size**0.5).masked_fill(~seen_BLE[:, None], -torch.inf).softmax(-1)
    out_BNLH = weights @ v_BNLH
    if document_BE is None:
        return out_BNLH
    return out_BNLH.masked_fill((document_BE[:, None, keys - length :, None] < 0), 0.0)


def dense_clipped_attention(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    table_PH: torch.Tensor,
    *,
    causal: bool = False,
    document_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """`clipped_attention` with a vector for every pair of a query and a key.

    Args:
        q_BNLH: (B, N, L, H) queries.
        k_BNLH: (B, N, L, H) keys.
        v_BNLH: (B, N, L, H) values.
        table_PH: (2m + 1, H) vectors of relative positions -m .. m.
        causal: Whether later keys are hidden.
        document_BL: (B, L) document of each position, -1 for what nobody sees.
    """
    length, size = q_BNLH.shape[2:]
    index_L = torch.arange(length, device=q_BNLH.device)
    reach = len(table_PH) // 2
    r_LLH = table_PH[(index_L - index_L[:, None]).clamp(-reach, reach) + reach]
    scores = q_BNLH @ k_BNLH.transpose(-1, -2) + torch.einsum("bnih,ijh->bnij", q_BNLH, r_LLH)
    seen_BLL = torch.ones(1, length, length, dtype=torch.bool, device=q_BNLH.device)
    if causal:
        seen_BLL = seen_BLL.tril()
    if document_BL is not None:
        own_BL1 = document_BL[..., None]
        # What nobody sees gives nothing; any sight keeps its softmax finite until then.
        seen_BLL = seen_BLL & (own_BL1 == document_BL[:, None]) & (own_BL1 >= 0) | (own_BL1 < 0)
    weights = (scores / size**0.5).masked_fill(~seen_BLL[:, None], -torch.inf).softmax(-1)
    out_BNLH = weights @ v_BNLH + torch.einsum("bnij,ijh->bnih", weights, r_LLH)
    if document_BL is None:
        return out_BNLH
    return out_BNLH.masked_fill((document_BL < 0)[:, None, :, None], 0.0)
