"""Token by token with Transformer-XL: its memory, as the keys and values made of it.

What a layer remembers is projected once, and not again for every token as in the published model;
so are the distances. With positions in the input (`attn_type` 2 and 3) or without a memory, each
token has the whole text read again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch

from lsp.models.layers.recent import Window
from lsp.models.layers.sight import make_sight
from lsp.models.reading import check_step
from lsp.models.transformer_xl_config import RELATIVE
from lsp.models.transformer_xl_layers import DecoderAttention, Memo, TransformerXLLayer
from lsp.models.transformer_xl_stack import SEGMENTS, layer_name

if TYPE_CHECKING:
    from lsp.models.transformer_xl import TransformerXL


@dataclass
class LayerCache:
    """What one layer knows.

    Attributes:
        window: Keys and values of the tokens that the next one sees, and its own.
        distances: (N, P, H), then what is added to queries and to scores.
    """

    window: Window
    distances: tuple[torch.Tensor, ...]


@dataclass
class TransformerXLCache:
    """What the model remembers of the tokens so far.

    Attributes:
        layers: None before the first.
        text: All tokens, where they have to be read again.
    """

    layers: list[LayerCache] = field(default_factory=list)
    text: list[torch.Tensor] = field(default_factory=list)


@torch.no_grad()
def step(
    model: TransformerXL, input_ids_BT: torch.Tensor, cache: TransformerXLCache
) -> torch.Tensor:
    """Reads tokens and scores the one after them.

    The first call reads a prompt of any length at once, all of which sees all before it; later
    tokens see `mem_len` others.

    Args:
        model: In evaluation mode.
        input_ids_BT: (B, T) tokens that follow those already read.
        cache: Of this text; it is brought up to date.

    Returns:
        (B, V) log probabilities of the next token.
    """
    check_step(model, input_ids_BT.shape[1])
    if not model.config.relative or model.transformer.mem_len == 0:
        cache.text.append(input_ids_BT)
        model.recall(None)
        hidden_BLD = model.hidden_states(torch.cat(cache.text, dim=1))
        return cast(torch.Tensor, model.crit(hidden_BLD[:, -1:])[:, 0])
    if not cache.layers:
        return _read_prompt(model, input_ids_BT, cache)
    for t in range(input_ids_BT.shape[1]):
        x_B1D = _read_token(model, input_ids_BT[:, t : t + 1], cache)
    return cast(torch.Tensor, model.crit(x_B1D)[:, 0])


def _read_prompt(
    model: TransformerXL, ids_BT: torch.Tensor, cache: TransformerXLCache
) -> torch.Tensor:
    model.recall(None)
    last_B1D = model.hidden_states(ids_BT)[:, -1:]
    memory, transformer = model.remembered(), model.transformer
    assert memory is not None
    seen = transformer.mem_len - 1 if model.config.same_length else transformer.mem_len
    # Rows that began a text remember places that nobody sees.
    known = int(memory[SEGMENTS][0].sum())
    sight = make_sight(1, seen, reach=None, device=last_B1D.device)
    places_PD = transformer.places(last_B1D, seen + 1)
    for number, attention in enumerate(transformer.attentions()):
        remembered_BMD = memory[layer_name(number)][:, transformer.mem_len - known :]
        k_BME, v_BME, *distances = attention("beside", Memo(sight, remembered_BMD, places_PD, None))
        window = Window(seen + 1)
        window.append(attention.split(k_BME), attention.split(v_BME))
        cache.layers.append(LayerCache(window, tuple(distances)))
    return cast(torch.Tensor, model.crit(last_B1D)[:, 0])


def _read_token(
    model: TransformerXL, ids_B1: torch.Tensor, cache: TransformerXLCache
) -> torch.Tensor:
    x_B1D = model.transformer.word_emb(ids_B1)
    whole = slice(0, 1)
    memo = Memo(make_sight(1, 0, reach=None, device=x_B1D.device), None, None, None)
    for module, known in zip(model.transformer.layers, cache.layers, strict=True):
        layer = cast(TransformerXLLayer, module)
        mixed_B1E = _attend(layer.dec_attn, x_B1D, memo, known)
        x_B1D = layer.dec_attn("after", mixed_B1E, x_B1D, memo, whole)
        x_B1D = layer.pos_ff("after", None, x_B1D, memo, whole)
    return x_B1D


def _attend(
    attention: DecoderAttention, x_B1D: torch.Tensor, memo: Memo, known: LayerCache
) -> torch.Tensor:
    """Attention of one token to itself and those before it: (B, 1, E)."""
    config = attention.config
    q_BN1H, k_BN1H, v_BN1H = map(attention.split, attention("before", x_B1D, memo, slice(0, 1)))
    known.window.append(k_BN1H, v_BN1H)
    k_BNTH, v_BNTH = known.window.keys_and_values
    r_NPH, u_NH, other = known.distances
    # Key t of T is at the distance T - 1 - t; what is far is like the furthest that is known.
    count = k_BNTH.shape[2]
    place_T = torch.arange(count - 1, -1, -1, device=x_B1D.device).clamp_(max=r_NPH.shape[1] - 1)
    scores_BN1T = (q_BN1H + u_NH[:, None]) @ k_BNTH.transpose(-1, -2)
    if config.attn_type == RELATIVE:
        scores_BN1T = scores_BN1T + (q_BN1H + other[:, None]) @ r_NPH[:, place_T].transpose(-1, -2)
    else:
        scores_BN1T = scores_BN1T + q_BN1H @ r_NPH[:, place_T].transpose(-1, -2)
        scores_BN1T = scores_BN1T + other[:, None, place_T]
    weights_BN1T = (scores_BN1T * config.d_head**-0.5).softmax(-1)
    return (weights_BN1T @ v_BNTH).transpose(1, 2).flatten(2)
