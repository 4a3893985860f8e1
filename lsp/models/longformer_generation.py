"""Token by token with a causal Longformer: what is remembered, and one step.

A token sees so many before it, so a layer remembers the keys and values of no more than its window
reaches: memory does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lsp.models.layers.recent import Window
from lsp.models.longformer_layers import Memo, WindowAttention
from lsp.models.reading import check_step

if TYPE_CHECKING:
    from lsp.models.longformer import Longformer


@dataclass
class LongformerCache:
    """What the model remembers of the tokens so far.

    Attributes:
        layers: Of each the window.
        length: Tokens read.
    """

    layers: list[Window]
    length: int = 0


def new_cache(model: Longformer) -> LongformerCache:
    """An empty memory for `step`."""
    config = model.config
    reaches = [w * max(gaps) for w, gaps in zip(config.windows, config.dilations, strict=True)]
    return LongformerCache([Window(reach + 1) for reach in reaches])


@torch.no_grad()
def step(model: Longformer, input_ids_BT: torch.Tensor, cache: LongformerCache) -> torch.Tensor:
    """Reads tokens and scores the one after them.

    The first call reads a prompt of any length at once; later calls read token by token.

    Args:
        model: A causal model in evaluation mode.
        input_ids_BT: (B, T) tokens that follow those already read.
        cache: Of this text; it is brought up to date.

    Returns:
        (B, V) scores of the next token.

    Raises:
        UserError: The model is not causal, or has no more positions.
    """
    config, new = model.config, input_ids_BT.shape[1]
    check_step(model, new, cache.length, config.max_positions)
    if cache.length == 0:
        return _read_prompt(model, input_ids_BT, cache)
    for t in range(new):
        scores_BV = _read_token(model, input_ids_BT[:, t : t + 1], cache)
    return scores_BV


def _read_prompt(model: Longformer, ids_BT: torch.Tensor, cache: LongformerCache) -> torch.Tensor:
    length = ids_BT.shape[1]
    ids_BL, segments_BL, positions_BL = model.padded(ids_BT, None, None)
    padding_BL = None if segments_BL is None else segments_BL == 0
    x_BLD = model.longformer.embeddings(ids_BL, positions_BL, padding_BL, None, None)
    memo = Memo(segments_BL, None, None)

    def mix(attention: WindowAttention, qkv: Sequence[torch.Tensor], window: Window) -> Any:
        k_BNTH, v_BNTH = (attention.split(x_BLE)[:, :, :length] for x_BLE in qkv[1:])
        window.append(k_BNTH, v_BNTH)
        return attention.mix(qkv, memo, attention.heads)

    cache.length = length
    return _scores(model, _run(model, x_BLD, memo, cache, mix)[:, length - 1 : length])


def _read_token(model: Longformer, ids_B1: torch.Tensor, cache: LongformerCache) -> torch.Tensor:
    position_B1 = torch.full_like(ids_B1, cache.length)
    x_B1D = model.longformer.embeddings(ids_B1, position_B1, None, None, None)

    def mix(attention: WindowAttention, qkv: Sequence[torch.Tensor], window: Window) -> Any:
        q_BN1H, k_BN1H, v_BN1H = (attention.split(x_B1E) for x_B1E in qkv)
        window.append(k_BN1H, v_BN1H)
        return _attend(attention, q_BN1H, window.keys_and_values).transpose(1, 2).flatten(2)

    cache.length += 1
    return _scores(model, _run(model, x_B1D, Memo(None, None, None), cache, mix))


def _scores(model: Longformer, hidden_B1D: torch.Tensor) -> torch.Tensor:
    scores_BV: torch.Tensor = model.lm_head(hidden_B1D)[:, -1]
    return scores_BV


def _run(
    model: Longformer,
    x_BLD: torch.Tensor,
    memo: Memo,
    cache: LongformerCache,
    mix: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """All layers, with `mix` for their attention: the hidden states (B, L, D)."""
    encoder, whole = model.longformer.encoder, slice(0, x_BLD.shape[1])
    blocks = encoder.blocks()
    pairs = zip(blocks[::2], blocks[1::2], cache.layers, strict=True)
    if not model.config.reversible:
        for attention, feed_forward, window in pairs:
            mixed_BLE = mix(attention, attention("before", x_BLD, memo, whole), window)
            x_BLD = attention("after", mixed_BLE, x_BLD, memo, whole)
            parts = [
                feed_forward("after", None, x_BLD[:, tile], memo, tile)
                for tile in feed_forward.tiles(x_BLD)
            ]
            x_BLD = torch.cat(parts, dim=1)
        return x_BLD
    attended_BLD = x_BLD
    for attention, feed_forward, window in pairs:
        heads = attention.heads
        mixed_BLE = mix(attention, attention("before", x_BLD, memo, heads, whole), window)
        attended_BLD = attended_BLD + attention("after", mixed_BLE, memo, heads, whole)
        parts = [
            feed_forward("after", attended_BLD[:, tile], memo, None, tile)
            for tile in feed_forward.tiles(x_BLD)
        ]
        x_BLD = x_BLD + torch.cat(parts, dim=1)
    return encoder.join(attended_BLD, x_BLD)


def _attend(attention: WindowAttention, q_BN1H: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
    """Attention of the newest token, each head with its own gap: (B, N, 1, H)."""
    newest, out_BN1H = kv.shape[3] - 1, torch.empty_like(q_BN1H)
    for gap in sorted(set(attention.gaps)):
        heads = [head for head, other in enumerate(attention.gaps) if other == gap]
        first = newest - min(newest // gap, attention.reach[0]) * gap
        k_BNWH, v_BNWH = kv[:, :, heads, first::gap]
        out_BN1H[:, heads] = F.scaled_dot_product_attention(q_BN1H[:, heads], k_BNWH, v_BNWH)
    return out_BN1H
