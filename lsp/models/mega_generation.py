"""Token by token with a causal Mega: what is remembered, and one step.

Of averages a layer remembers their state, and of its chunk keys and values: memory does not grow
with the text, but for a model without chunks. Averages that are cut off would have to remember what
they leave behind, so with `truncation` each token has the whole text read again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F

from lsp.models.layers.group_attention import weigh
from lsp.models.layers.moving_average import state_after
from lsp.models.mega_layers import GatedAttention
from lsp.models.reading import check_step

if TYPE_CHECKING:
    from lsp.models.mega import Mega


@dataclass
class LayerCache:
    """What one layer knows.

    Attributes:
        state: (B, D, N) its averages.
        keys: (B, T, Z) of the chunk so far.
        values: (B, T, U) of them.
    """

    state: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


@dataclass
class MegaCache:
    """What the model remembers of the tokens so far.

    Attributes:
        layers: None before the first.
        length: Tokens read.
        text: All tokens, where they have to be read again.
    """

    layers: list[LayerCache] = field(default_factory=list)
    length: int = 0
    text: list[torch.Tensor] = field(default_factory=list)


@torch.no_grad()
def step(model: Mega, input_ids_BT: torch.Tensor, cache: MegaCache) -> torch.Tensor:
    """Reads tokens and scores the one after them.

    The first call reads a prompt of any length at once; later calls read token by token.

    Args:
        model: A causal model in evaluation mode.
        input_ids_BT: (B, T) tokens that follow those already read.
        cache: Of this text; it is brought up to date.

    Returns:
        (B, V) scores of the next token.

    Raises:
        UserError: The model is not causal, or its bias has no numbers for so long a text.
    """
    config, new = model.config, input_ids_BT.shape[1]
    check_step(model, new)
    config.check_positions(cache.length + new)
    if config.truncation is not None:
        cache.text.append(input_ids_BT)
        cache.length += new
        hidden_BLD = model.hidden_states(torch.cat(cache.text, dim=1))
        return cast(torch.Tensor, model.lm_head(hidden_BLD[:, -1:])[:, 0])
    if not cache.layers:
        x_B1D = _read_prompt(model, input_ids_BT, cache)
    else:
        for t in range(new):
            x_B1D = _read_token(model, input_ids_BT[:, t : t + 1], cache)
    return cast(torch.Tensor, model.lm_head(x_B1D)[:, 0])


def _read_prompt(model: Mega, ids_BT: torch.Tensor, cache: MegaCache) -> torch.Tensor:
    config, length = model.config, ids_BT.shape[1]
    x_BTD = model.mega.embedding_layer(ids_BT, None)
    memo, whole = model.mega.memo(None, x_BTD), slice(0, length)
    begun = length % config.chunk_size if config.use_chunking else length
    for layer in model.mega.parts():
        block = layer.mega_layer
        normed_BTD, v_BTU = block("before", x_BTD, memo, whole)
        (y_BTD,) = block("average", normed_BTD, memo, whole)
        q_BTZ, k_BTZ, *gates = block("project", y_BTD, memo, whole)
        (mixed_BTU,) = block("attend", q_BTZ, k_BTZ, v_BTU, memo, whole)
        state_BDN = state_after(normed_BTD, block.ema_gate.coefficients()[0][0], None)
        of_chunk = slice(length - begun, length)
        cache.layers.append(LayerCache(state_BDN, k_BTZ[:, of_chunk], v_BTU[:, of_chunk]))
        (x_BTD,) = block("after", x_BTD, mixed_BTU, *gates, memo, whole)
        if layer.nffn is not None:
            parts = [
                layer.nffn("after", None, x_BTD[:, tile], memo, tile)
                for tile in layer.nffn.tiles(x_BTD)
            ]
            x_BTD = torch.cat(parts, dim=1)
    cache.length = length
    return x_BTD[:, -1:]


def _read_token(model: Mega, ids_B1: torch.Tensor, cache: MegaCache) -> torch.Tensor:
    config, one = model.config, slice(0, 1)
    x_B1D = model.mega.embedding_layer(ids_B1, None)
    memo = model.mega.memo(None, x_B1D)
    starts = config.use_chunking and cache.length % config.chunk_size == 0
    for layer, known in zip(model.mega.parts(), cache.layers, strict=True):
        block = layer.mega_layer
        normed_B1D, v_B1U = block("before", x_B1D, memo, one)
        y_B1D = _averaged(block, normed_B1D, known)
        q_B1Z, k_B1Z, *gates = block("project", y_B1D, memo, one)
        known.keys = k_B1Z if starts else torch.cat([known.keys, k_B1Z], dim=1)
        known.values = v_B1U if starts else torch.cat([known.values, v_B1U], dim=1)
        mixed_B1U = _attended(block, q_B1Z, known)
        (x_B1D,) = block("after", x_B1D, mixed_B1U, *gates, memo, one)
        if layer.nffn is not None:
            x_B1D = layer.nffn("after", None, x_B1D, memo, one)
    cache.length += 1
    return x_B1D


def _averaged(block: GatedAttention, x_B1D: torch.Tensor, known: LayerCache) -> torch.Tensor:
    gate = block.ema_gate
    (kept_DN,), (weight_DN,) = gate.coefficients()
    known.state = state_after(x_B1D, kept_DN, known.state)
    y_B1D = (known.state * weight_DN).sum(-1)[:, None]
    return F.silu(y_B1D + x_B1D * gate.residual_weight).to(x_B1D.dtype)


def _attended(block: GatedAttention, q_B1Z: torch.Tensor, known: LayerCache) -> torch.Tensor:
    """Of the newest token, which sees all that is known of its chunk."""
    count = known.keys.shape[1]
    bias_T = block.rel_pos_bias(count - 1)[:count]
    scores_B1T = q_B1Z @ known.keys.transpose(1, 2)
    weights_B1T = weigh(
        scores_B1T, bias_T, block.config.attention_activation, q_B1Z.shape[-1], count
    )
    return weights_B1T.to(known.values.dtype) @ known.values
