"""An encoder reads one text, a decoder predicts another, token by token.

For every objective that gives `decoder_input_ids`: span corruption (1910.10683), denoising
(1910.13461), gap sentences (1912.08777), translation. Decoder inputs are those of the batch, which
begin with the start token: no published class has to shift anything.
"""

from __future__ import annotations

from typing import Any

import torch

from lsp.core.batch import IGNORE_INDEX
from lsp.models.hub import masks
from lsp.models.hub.losses import router
from lsp.models.hub.losses.one_by_one import Tokens

NAMES = ("input_ids", "segment_ids", "position_ids")
SIDES = ("", "decoder_")


def loss(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of what the decoder predicts, and how many tokens that are.

    Args:
        hub: The model.
        batch: `input_ids`, `segment_ids`, `position_ids` (B, L) of the encoder;
            `decoder_input_ids`, `decoder_segment_ids`, `decoder_position_ids`, `labels` (B, T).
    """
    labels_BT = batch["labels"]
    encoder, decoder = run(hub, batch)
    loss_sum, count = hub.head.loss(decoder.last_hidden_state, labels_BT, hub.memory)
    if hub.row.model_type in router.KINDS:
        predicted_B = (labels_BT != IGNORE_INDEX).sum(1)
        for output, side in ((encoder, "segment_ids"), (decoder, "decoder_segment_ids")):
            loss_sum = loss_sum + router.router_loss(
                hub.model.config, output.router_logits, batch[side] != 0, predicted_B
            )
    return loss_sum, count


def predict(hub: Any, batch: dict[str, torch.Tensor]) -> Tokens:
    """What the decoder is about to say."""
    _, decoder = run(hub, batch)
    return Tokens(decoder.last_hidden_state, batch["labels"])


def run(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    """The published outputs of the encoder and the decoder.

    They are called one by one: a decoder's token sees the encoder's of its own document alone, for
    which the published classes, that call both, have no argument.
    """
    for_encoder, for_decoder = arguments(hub, batch)
    encoder = encode(hub, batch["input_ids"], for_encoder)
    states_BLD = encoder.last_hidden_state
    return encoder, decode(hub, batch["decoder_input_ids"], states_BLD, for_decoder)


def arguments(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the encoder, and what the decoder is given beside the tokens."""
    sides: dict[str, Any] = {
        f"{side}{name}": batch.get(f"{side}{name}") for side in SIDES for name in NAMES
    }
    given = masks.arguments(hub.row, hub.model, **sides, causal=False, config=hub.config)
    cross = given.pop("cross_attention_mask")
    own = {name: given.pop(name) for name in [*given] if name.startswith("decoder_")}
    for_decoder = {name.removeprefix("decoder_"): value for name, value in own.items()}
    return given, {**for_decoder, "encoder_attention_mask": cross}


def encode(hub: Any, input_ids: torch.Tensor, given: dict[str, Any]) -> Any:
    """The published output of the encoder for (B, L) tokens."""
    encoder = hub.model.get_encoder()
    return encoder(input_ids=input_ids, return_dict=True, **_routers(hub), **given)


def decode(
    hub: Any,
    input_ids: torch.Tensor,
    states_BLD: torch.Tensor,
    given: dict[str, Any],
    memory: Any = None,
) -> Any:
    """The published output of the decoder for (B, T) tokens, which sees the encoder's states.

    Args:
        hub: The model.
        input_ids: (B, T) the decoder's tokens.
        states_BLD: (B, L, D) the encoder's states.
        given: Beside the tokens.
        memory: Of the decoder's tokens before, brought up to date; None for none.
    """
    return hub.model.get_decoder()(
        input_ids=input_ids,
        encoder_hidden_states=states_BLD,
        use_cache=memory is not None,
        past_key_values=memory,
        return_dict=True,
        **_routers(hub),
        **given,
    )


def _routers(hub: Any) -> dict[str, bool]:
    return {"output_router_logits": True} if hub.row.model_type in router.KINDS else {}
