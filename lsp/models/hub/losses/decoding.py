"""What an encoder-decoder writes: the encoder reads the prompt, once, and the decoder continues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lsp.core.errors import require
from lsp.core.objectives import DECODER
from lsp.models.hub import caches, masks
from lsp.models.hub.losses import encoder_decoder, future_ngram


def decodes(hub: Any) -> bool:
    """Whether a decoder writes what it makes of another text."""
    return hub.config.objective in DECODER


def hidden_states(hub: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, T, D) states that the head reads, of `decoder_input_ids`."""
    return _next(hub, encoder_decoder.run(hub, batch)[1])


@dataclass
class Written:
    """What a decoder remembers of one batch of texts.

    Attributes:
        encoded: What the encoder has read, and what it made of it; nothing before the first step.
        ids: (B, T) what the decoder has written, behind its start token.
        memory: What the decoder made of that; None where it reads it again.
    """

    encoded: Encoded | None = None
    ids: torch.Tensor | None = None
    memory: Any = None


@dataclass(frozen=True)
class Encoded:
    """A text that the encoder has read.

    Attributes:
        batch: Its tokens.
        states: (B, L, D) what the encoder made of them.
    """

    batch: dict[str, torch.Tensor]
    states: torch.Tensor


def step(hub: Any, input_ids: torch.Tensor, written: Written) -> torch.Tensor:
    """Scores of the next token that the decoder writes: (B, V).

    The encoder's text is read once.

    Args:
        hub: The model.
        input_ids: (B, L) the encoder's text in the first step, then the token that was chosen.
        written: Brought up to date.

    Raises:
        UserError: The decoder has nothing to begin with, or no more positions.
    """
    if written.encoded is None or written.ids is None:
        written.encoded, input_ids = _encoded(hub, input_ids), _start(hub, input_ids)
        written.ids = input_ids[:, :0]
        if caches.exact(hub):
            written.memory = _empty(hub)
    past = written.ids.shape[1]
    written.ids = torch.cat([written.ids, input_ids], dim=1)
    caches.check_room(hub, written.ids.shape[1])
    if written.memory is None:
        return _scores(hub, _decoded(hub, written.encoded, written.ids))
    for place, token_B1 in enumerate(input_ids.split(1, dim=1), past):
        decoder = _following(hub, written.encoded, token_B1, place, written.memory)
    return _scores(hub, decoder)


def reread(hub: Any, parts: list[torch.Tensor]) -> torch.Tensor:
    """The same of a text for the encoder, and what was written since, without a memory.

    Args:
        hub: The model.
        parts: (B, L) the encoder's text, then (B, T) each of what was written.
    """
    ids_BT = torch.cat([_start(hub, parts[0]), *parts[1:]], dim=1)
    caches.check_room(hub, ids_BT.shape[1])
    return _scores(hub, _decoded(hub, _encoded(hub, parts[0]), ids_BT))


def _start(hub: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """(B, 1) what texts of the decoder begin with."""
    start = hub.model.config.decoder_start_token_id
    require(
        start is not None,
        "decoder_start_token_id=null: the decoder has nothing to begin with; set "
        "architecture.model_init_config.decoder_start_token_id",
    )
    return input_ids.new_full((len(input_ids), 1), start)


def _encoded(hub: Any, input_ids: torch.Tensor) -> Encoded:
    caches.check_room(hub, input_ids.shape[1])
    batch = {"input_ids": input_ids, "segment_ids": torch.ones_like(input_ids)}
    own = {"decoder_input_ids": input_ids[:, :1]}  # any: of both sides, only one is wanted
    for_encoder, _ = encoder_decoder.arguments(hub, batch | own)
    return Encoded(batch, encoder_decoder.encode(hub, input_ids, for_encoder).last_hidden_state)


def _decoded(hub: Any, encoded: Encoded, ids_BT: torch.Tensor) -> Any:
    """The decoder's output, of everything that it has written."""
    _, given = encoder_decoder.arguments(hub, encoded.batch | {"decoder_input_ids": ids_BT})
    return encoder_decoder.decode(hub, ids_BT, encoded.states, given)


def _following(hub: Any, encoded: Encoded, token_B1: torch.Tensor, place: int, memory: Any) -> Any:
    """The decoder's output, of the next token alone."""
    positions_B1 = torch.full_like(token_B1, place)
    own = {"decoder_input_ids": token_B1, "decoder_position_ids": positions_B1}
    _, given = encoder_decoder.arguments(hub, encoded.batch | own)
    del given["attention_mask"]  # it sees all that is remembered
    with masks.following(hub.model.get_decoder(), positions_B1, 0):
        return encoder_decoder.decode(hub, token_B1, encoded.states, given, memory)


def _empty(hub: Any) -> Any:
    from transformers import DynamicCache, EncoderDecoderCache

    config = hub.model.get_decoder().config
    return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))


def _scores(hub: Any, decoder: Any) -> torch.Tensor:
    scores_B1V: torch.Tensor = hub.head.scores(_next(hub, decoder)[:, -1:])
    return scores_B1V[:, 0]


def _next(hub: Any, decoder: Any) -> torch.Tensor:
    """(B, T, D) states that the next token is predicted from."""
    if hasattr(decoder, "last_hidden_state_ngram"):
        return future_ngram.first_stream(hub, decoder)
    states_BTD: torch.Tensor = decoder.last_hidden_state
    return states_BTD
