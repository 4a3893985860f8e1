"""What an encoder-decoder writes: the encoder reads the prompt, once, and the decoder continues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lsp.core.errors import require
from lsp.core.objectives import DECODER
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
        batch: The text that the encoder has read; nothing before the first step.
        states: (B, L, D) what it made of it.
        ids: (B, T) what the decoder has written, behind its start token.
    """

    batch: dict[str, torch.Tensor] | None = None
    states: torch.Tensor | None = None
    ids: torch.Tensor | None = None


def step(hub: Any, input_ids: torch.Tensor, written: Written) -> torch.Tensor:
    """Scores of the next token that the decoder writes: (B, V).

    What it has written is read again for every token; the encoder's text is not.

    Args:
        hub: The model.
        input_ids: (B, L) the encoder's text in the first step, then the token that was chosen.
        written: Brought up to date.
    """
    if written.batch is None or written.ids is None:
        start = hub.model.config.decoder_start_token_id
        require(
            start is not None,
            "decoder_start_token_id=null: the decoder has nothing to begin with; set "
            "architecture.model_init_config.decoder_start_token_id",
        )
        ones_BL = torch.ones_like(input_ids)
        written.batch = {"input_ids": input_ids, "segment_ids": ones_BL}
        written.ids = input_ids.new_full((len(input_ids), 1), start)
    else:
        written.ids = torch.cat([written.ids, input_ids], dim=1)
    own = {"decoder_input_ids": written.ids}
    for_encoder, for_decoder = encoder_decoder.arguments(hub, written.batch | own)
    if written.states is None:
        encoder = encoder_decoder.encode(hub, written.batch["input_ids"], for_encoder)
        written.states = encoder.last_hidden_state
    decoder = encoder_decoder.decode(hub, written.ids, written.states, for_decoder)
    scores_B1V: torch.Tensor = hub.head.scores(_next(hub, decoder)[:, -1:])
    return scores_B1V[:, 0]


def _next(hub: Any, decoder: Any) -> torch.Tensor:
    """(B, T, D) states that the next token is predicted from."""
    if hasattr(decoder, "last_hidden_state_ngram"):
        return future_ngram.first_stream(hub, decoder)
    states_BTD: torch.Tensor = decoder.last_hidden_state
    return states_BTD
