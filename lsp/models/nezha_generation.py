"""Token by token with a causal NEZHA: what is remembered, and one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lsp.models.layers.recent import Window
from lsp.models.layers.sight import make_sight
from lsp.models.nezha_layers import Attention, Memo
from lsp.models.reading import check_step

if TYPE_CHECKING:
    from lsp.models.nezha import Nezha


@dataclass
class NezhaCache:
    """What the model remembers of the tokens so far.

    Attributes:
        layers: Of each the keys and values.
        length: Tokens read.
    """

    layers: list[Window]
    length: int = 0


def new_cache(model: Nezha) -> NezhaCache:
    """An empty memory for `step`."""
    config = model.config
    windows = [Window(config.max_position_embeddings) for _ in range(config.num_hidden_layers)]
    return NezhaCache(windows)


@torch.no_grad()
def step(model: Nezha, input_ids_BT: torch.Tensor, cache: NezhaCache) -> torch.Tensor:
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
    new = input_ids_BT.shape[1]
    check_step(model, new, cache.length, model.config.max_position_embeddings)
    parts = [input_ids_BT] if cache.length == 0 else list(input_ids_BT.split(1, dim=1))
    for ids_BT in parts:
        scores_BV = _read(model, ids_BT, cache)
    return scores_BV


def _read(model: Nezha, ids_BT: torch.Tensor, cache: NezhaCache) -> torch.Tensor:
    x_BTD = model.nezha.embeddings(ids_BT)
    length = ids_BT.shape[1]
    sight = make_sight(length, 0, reach=None, device=x_BTD.device)
    memo, whole = Memo(sight, None), slice(0, length)
    mix: Callable[..., torch.Tensor] = _prompt if cache.length == 0 else _token
    cache.length += length
    blocks: list[Any] = list(model.nezha.encoder.blocks())
    for attention, feed_forward, window in zip(
        blocks[::2], blocks[1::2], cache.layers, strict=True
    ):
        mixed_BTE = mix(attention, attention("before", x_BTD, memo, whole), window, memo)
        x_BTD = attention("after", mixed_BTE, x_BTD, memo, whole)
        parts = [
            feed_forward("after", None, x_BTD[:, tile], memo, tile)
            for tile in feed_forward.tiles(x_BTD)
        ]
        x_BTD = torch.cat(parts, dim=1)
    return model.lm_head(x_BTD[:, -1:])[:, -1]


def _prompt(
    attention: Attention, qkv: Sequence[torch.Tensor], window: Window, memo: Memo
) -> torch.Tensor:
    window.append(*(attention.split(x_BTE) for x_BTE in qkv[1:]))
    out_BTE: torch.Tensor = attention("across", qkv, memo)
    return out_BTE


def _token(
    attention: Attention, qkv: Sequence[torch.Tensor], window: Window, memo: Memo
) -> torch.Tensor:
    """Attention of the newest token: (B, 1, E)."""
    q_BN1H, k_BN1H, v_BN1H = (attention.split(x_B1E) for x_B1E in qkv)
    window.append(k_BN1H, v_BN1H)
    k_BNTH, v_BNTH = window.keys_and_values
    table_PH = attention.table(q_BN1H.device).to(q_BN1H.dtype)
    newest, reach = k_BNTH.shape[2] - 1, len(table_PH) // 2
    distance_T = torch.arange(newest, -1, -1, device=q_BN1H.device)
    r_TH = table_PH[reach - distance_T.clamp(max=reach)]
    scores_BN1T = q_BN1H @ (k_BNTH + r_TH).transpose(-1, -2) * q_BN1H.shape[-1] ** -0.5
    wide = torch.promote_types(scores_BN1T.dtype, torch.float32)
    weights_BN1T = scores_BN1T.softmax(-1, dtype=wide).to(q_BN1H.dtype)
    return (weights_BN1T @ (v_BNTH + r_TH)).transpose(1, 2).flatten(2)
