"""Attention within the documents of packed rows, for published models that let it be chosen.

`transformers` calls one function for the attention of most of its models, found by the name in
`config._attn_implementation`, and passes on what it is given as a mask. What it is given here is
not a mask, L × L, but the numbers of the documents (`documents`), so that each document attends by
itself and memory stays linear in the length of a row.

Letters beside those of `lsp.core.batch`: M the larger of the numbers of queries and keys, T the
positions of all rows one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakIdKeyDictionary

from lsp.models.layers.exchange import WHOLE_ROWS, Exchange

NAMES = {
    "lsp": "lsp",
    "flex_attention": "lsp_flex",
    "flash_attention_2": "lsp_varlen",
    "sdpa": "lsp_sdpa",
}
"""What `transformers` calls them, by value of `architecture.attention`."""
NO_KEY = -1
"""Number of places that only make queries and keys alike in number."""
QUERIES, KEYS, CAUSAL = range(3)
"""What the three rows of `documents` are."""


def documents(
    segments_BL: torch.Tensor,
    causal: bool,
    key_segments_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """What stands in for an attention mask: (B, 1, 3, M) int64.

    Four dimensions, since `transformers` hands masks of four dimensions through to attention.

    Args:
        segments_BL: (B, L) document numbers of the queries, 0 for padding.
        causal: Whether a position sees none after itself.
        key_segments_BL: (B, K) document numbers of the keys, in cross attention; None for those of
            the queries.
    """
    keys_BK = segments_BL if key_segments_BL is None else key_segments_BL
    size = max(segments_BL.shape[1], keys_BK.shape[1])
    rows = [
        F.pad(x_BL.long(), (0, size - x_BL.shape[1]), value=NO_KEY)
        for x_BL in (segments_BL, keys_BK)
    ]
    return torch.stack([*rows, torch.full_like(rows[0], int(causal))], dim=1)[:, None]


def is_documents(mask: Any) -> bool:
    """Whether attention was given the numbers of documents, and no mask of its scores."""
    return isinstance(mask, torch.Tensor) and mask.dtype == torch.int64 and mask.dim() == 4


def dense_mask(documents_B13M: torch.Tensor) -> torch.Tensor:
    """The same as a mask of all scores: (B, 1, L, K) bool, True where a key is seen."""
    queries_BM, keys_BM, causal_BM = documents_B13M[:, 0].unbind(1)
    seen_BMM = queries_BM[:, :, None] == keys_BM[:, None, :]
    order_MM = torch.ones_like(seen_BMM[0]).tril()
    seen_BMM = seen_BMM & (order_MM | (causal_BM[:, :1, None] == 0))
    length, keys = int((queries_BM[0] >= 0).sum()), int((keys_BM[0] >= 0).sum())
    return seen_BMM[:, None, :length, :keys]


@dataclass(frozen=True)
class Layout:
    """Where the documents of a batch are, its rows one after another.

    Attributes:
        queries: Positions of each run of queries, in order; they add up to all.
        keys: First position and number of the keys that each run sees.
        causal: Whether a position sees none after itself.
        length: Queries of a row.
        key_length: Keys of a row.
        own: Whether every run sees itself, so that keys divide as queries do.
    """

    queries: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]
    causal: bool
    length: int
    key_length: int
    own: bool


_LAYOUTS: Any = WeakIdKeyDictionary()
"""One for each forward pass, whose layers all are given the same tensor."""


def layout_of(documents_B13M: torch.Tensor) -> Layout:
    """Where documents begin and end; waits for the device once for each forward pass."""
    found: Layout | None = _LAYOUTS.get(documents_B13M)
    if found is None:
        found = _LAYOUTS[documents_B13M] = _layout(documents_B13M[:, 0].cpu())
    return found


def _layout(documents_B3M: torch.Tensor) -> Layout:
    length = int((documents_B3M[0, QUERIES] != NO_KEY).sum())
    key_length = int((documents_B3M[0, KEYS] != NO_KEY).sum())
    own = torch.equal(documents_B3M[:, QUERIES], documents_B3M[:, KEYS])
    queries: list[int] = []
    keys: list[tuple[int, int]] = []
    for row, (queries_M, keys_M, _) in enumerate(documents_B3M):
        runs = _runs(queries_M[:length])
        queries += [count for _, _, count in runs]
        if own:
            keys += [(row * length + start, count) for _, start, count in runs]
            continue
        # Padding is nobody's key, and a run that sees nothing gets nothing.
        seen = {n: (row * key_length + s, c) for n, s, c in _runs(keys_M[:key_length]) if n}
        keys += [seen.get(number, (0, 0)) for number, _, _ in runs]
    causal = bool(documents_B3M[0, CAUSAL, 0])
    return Layout(tuple(queries), tuple(keys), causal, length, key_length, own)


def _runs(numbers_L: torch.Tensor) -> list[tuple[int, int, int]]:
    """Number, first position and length of each run of equal numbers."""
    numbers, counts = torch.unique_consecutive(numbers_L, return_counts=True)
    starts = counts.cumsum(0) - counts
    return list(zip(numbers.tolist(), starts.tolist(), counts.tolist(), strict=True))


Attend = Callable[..., torch.Tensor]
"""`f(q_BNLH, k_BNKH, v_BNKH, documents_B13M, scale, dropout, window)` gives (B, N, L, H)."""


def each_document(
    q_BNLH: torch.Tensor,
    k_BNKH: torch.Tensor,
    v_BNKH: torch.Tensor,
    documents_B13M: torch.Tensor,
    scale: float,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """Attention of one document after another, through `scaled_dot_product_attention`."""
    layout = layout_of(documents_B13M)
    rows = q_BNLH.shape[0]
    attend = _windowed if window is not None and layout.causal else _attended
    if len(set(layout.queries)) == 1 and layout.own:
        # Documents of one length, most often whole rows, are a batch.
        size = layout.queries[0]
        q, k, v = (
            x.transpose(1, 2).reshape(-1, size, x.shape[1], x.shape[3]).transpose(1, 2)
            for x in (q_BNLH, k_BNKH, v_BNKH)
        )
        out = attend(q, k, v, layout.causal, scale, dropout, window)
        return out.transpose(1, 2).reshape(rows, layout.length, *_heads(out)).transpose(1, 2)
    # Cut by `split`, whose gradient is one `cat`: that of a slice would be as large as all rows.
    q_1NTH, k_1NTH, v_1NTH = (_in_a_row(x) for x in (q_BNLH, k_BNKH, v_BNKH))
    queries = q_1NTH.split(layout.queries, dim=2)
    if layout.own:
        keys, values = (x.split(layout.queries, dim=2) for x in (k_1NTH, v_1NTH))
    else:
        keys, values = (
            tuple(x[:, :, first : first + count] for first, count in layout.keys)
            for x in (k_1NTH, v_1NTH)
        )
    outs = [
        attend(q, k, v, layout.causal, scale, dropout, window)
        if k.shape[2]
        else q.new_zeros(*q.shape[:3], v.shape[3])
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    out_1NTH = torch.cat(outs, dim=2)
    return out_1NTH[0].unflatten(1, (rows, layout.length)).transpose(0, 1)


def _heads(x_BNLH: torch.Tensor) -> tuple[int, int]:
    return x_BNLH.shape[1], x_BNLH.shape[3]


def _in_a_row(x_BNLH: torch.Tensor) -> torch.Tensor:
    return x_BNLH.transpose(0, 1).flatten(1, 2)[None]  # (1, N, B * L, H)


def _attended(
    q_BNLH: torch.Tensor,
    k_BNKH: torch.Tensor,
    v_BNKH: torch.Tensor,
    causal: bool,
    scale: float,
    dropout: float,
    _: int | None,
) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        q_BNLH,
        k_BNKH,
        v_BNKH,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=q_BNLH.shape[1] != k_BNKH.shape[1],
    )


def _windowed(
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    causal: bool,
    scale: float,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """Causal attention to the last `window` positions, itself among them, block by block.

    A block as long as the window sees itself and the block before it.
    """
    assert window is not None
    length = q_BNLH.shape[2]
    if length <= window:
        return _attended(q_BNLH, k_BNLH, v_BNLH, causal, scale, dropout, None)
    missing = -length % window
    batch, blocks = q_BNLH.shape[0], (length + missing) // window
    q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q_BNLH, k_BNLH, v_BNLH))

    def blocked(x_BNLH: torch.Tensor) -> torch.Tensor:
        return x_BNLH.unflatten(2, (blocks, window)).transpose(1, 2)  # (B, C, N, W, H)

    def with_before(x_BNLH: torch.Tensor) -> torch.Tensor:
        before = F.pad(x_BNLH, (0, 0, window, 0))[:, :, :-window]
        return torch.cat([blocked(before), blocked(x_BNLH)], dim=3).flatten(0, 1)

    index_W = torch.arange(window, device=q.device)
    behind = index_W[:, None] < index_W[None, :]  # within the block before, in reach
    seen_WK = torch.cat([behind, ~behind], dim=1)
    first = torch.arange(2 * window, device=q.device) >= window
    seen_CWK = seen_WK.expand(blocks, -1, -1).clone()
    seen_CWK[0] &= first
    out = F.scaled_dot_product_attention(
        blocked(q).flatten(0, 1),
        with_before(k),
        with_before(v),
        attn_mask=seen_CWK.repeat(batch, 1, 1)[:, None],
        dropout_p=dropout,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    out_BNLH = out.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
    return out_BNLH[:, :, :length]


def whole_rows(
    q_BNLH: torch.Tensor,
    k_BNKH: torch.Tensor,
    v_BNKH: torch.Tensor,
    documents_B13M: torch.Tensor,
    scale: float,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """Attention of whole rows under a mask of all scores, L × L: the plain twin of the others."""
    mask_B1LK = _with_window(dense_mask(documents_B13M), window)
    return F.scaled_dot_product_attention(
        q_BNLH,
        k_BNKH,
        v_BNKH,
        attn_mask=mask_B1LK,
        dropout_p=dropout,
        scale=scale,
        enable_gqa=q_BNLH.shape[1] != k_BNKH.shape[1],
    )


def _with_window(mask_B1LK: torch.Tensor, window: int | None) -> torch.Tensor:
    if window is None:
        return mask_B1LK
    return mask_B1LK & ~torch.ones_like(mask_B1LK).tril(-window)


def _biased(
    q_BNLH: torch.Tensor,
    k_BNKH: torch.Tensor,
    v_BNKH: torch.Tensor,
    documents_B13M: torch.Tensor,
    scale: float,
    dropout: float,
    window: int | None,
    bias_BNLK: torch.Tensor,
) -> torch.Tensor:
    """Attention of whole rows with a learned bias of all scores, which is L × L anyway."""
    mask_B1LK = _with_window(dense_mask(documents_B13M), window)
    bias_BNLK = bias_BNLK.masked_fill(~mask_B1LK, torch.finfo(bias_BNLK.dtype).min)
    return F.scaled_dot_product_attention(
        q_BNLH, k_BNKH, v_BNKH, attn_mask=bias_BNLK, dropout_p=dropout, scale=scale
    )


def interface(attend: Attend) -> Callable[..., tuple[torch.Tensor, None]]:
    """What `transformers` is to call for attention.

    Ordinary masks, and none, which generation has, are for the function of `transformers`.
    """

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        position_bias: torch.Tensor | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        assert softcap is None, "no architecture of the table has soft caps"
        assert s_aux is None, "no architecture of the table has sinks"
        if not is_documents(attention_mask):
            found: tuple[torch.Tensor, None] = sdpa_attention_forward(
                module,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                scaling=scaling,
                position_bias=position_bias,
                **kwargs,
            )
            return found
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        assert attention_mask is not None
        args = (attention_mask, scale, float(dropout), sliding_window)
        if position_bias is not None:
            return _biased(query, key, value, *args, position_bias).transpose(1, 2), None
        exchange: Exchange = getattr(module, "exchange", WHOLE_ROWS)
        if exchange.degree > 1:
            return _shared(attend, exchange, query, key, value, *args), None
        return attend(query, key, value, *args).transpose(1, 2), None

    return attention


def _shared(
    attend: Attend,
    exchange: Exchange,
    q_BNlH: torch.Tensor,
    k_BNlH: torch.Tensor,
    v_BNlH: torch.Tensor,
    *args: Any,
) -> torch.Tensor:
    """Attention of some heads to all positions (Ulysses, 2309.14509): (B, L / degree, N, H)."""
    size = q_BNlH.shape[3]
    if k_BNlH.shape[1] % exchange.degree:
        groups = q_BNlH.shape[1] // k_BNlH.shape[1]
        k_BNlH, v_BNlH = (x.repeat_interleave(groups, dim=1) for x in (k_BNlH, v_BNlH))

    def flat(x_BNlH: torch.Tensor) -> torch.Tensor:
        return x_BNlH.transpose(1, 2).flatten(2)

    def split(x_BLE: torch.Tensor) -> torch.Tensor:
        return x_BLE.unflatten(2, (-1, size)).transpose(1, 2)

    (q_BLE,) = exchange.to_heads([flat(q_BNlH)])
    k_BLE, v_BLE = exchange.to_heads([flat(k_BNlH), flat(v_BNlH)])
    out_BNLH = attend(split(q_BLE), split(k_BLE), split(v_BLE), *args)
    return exchange.to_positions(flat(out_BNLH).contiguous()).unflatten(2, (-1, size))


def register() -> None:
    """Makes the attention functions known to `transformers`, once or again.

    Masks that `transformers` makes itself, in generation, are those for its own `sdpa`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    from lsp.models.hub.kernels import flex, varlen

    functions = {
        "lsp": each_document,
        "flex_attention": flex,
        "flash_attention_2": varlen,
        "sdpa": whole_rows,
    }
    for name, attend in functions.items():
        AttentionInterface.register(NAMES[name], interface(attend))
        AttentionMaskInterface.register(NAMES[name], sdpa_mask)
