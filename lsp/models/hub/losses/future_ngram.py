"""Several streams predict each token, the n-th of them without the n - 1 before it (2001.04063).

ProphetNet's decoder has a main stream, which is only read, and `ngram` predicting streams. As
published, stream n at position t predicts the token that `labels` have at t, and sees the decoder's
inputs up to t - n + 1: so the first one is the ordinary next-token prediction.

The published streams take the scores of relative positions from states in another order than they
are used in: some early positions see a little of later ones, in the first stream too.
Releases 4.37.2 and 5.23 of transformers both do so; as an export computes what was trained, it
stays.
"""

from __future__ import annotations

from typing import Any

import torch

from lsp.models.hub.losses import encoder_decoder
from lsp.models.hub.losses.one_by_one import Tokens


def loss(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed mean of the streams' cross-entropies, and how many tokens are predicted.

    With `disable_ngram_loss` that of the first stream alone; `eps` smooths labels; as published.

    Args:
        hub: The model.
        batch: As for `encoder_decoder.loss`.
    """
    return _streams_loss(hub, encoder_decoder.run(hub, batch)[1], batch["labels"])


def predict(hub: Any, batch: dict[str, torch.Tensor]) -> Tokens:
    """What the first stream is about to say."""
    _, decoder = encoder_decoder.run(hub, batch)
    return Tokens(first_stream(hub, decoder), batch["labels"])


def first_stream(hub: Any, decoder: Any) -> torch.Tensor:
    """(B, T, D) hidden states that the next token is predicted from."""
    hidden_BSD: torch.Tensor = decoder.last_hidden_state_ngram
    return hidden_BSD[:, : hidden_BSD.shape[1] // hub.model.config.ngram]


def _streams_loss(
    hub: Any, decoder: Any, labels_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    config = hub.model.config
    streams = 1 if config.disable_ngram_loss else config.ngram
    # The streams lie one after the other: (B, N · T, D).
    hidden_BSD = decoder.last_hidden_state_ngram[:, : streams * labels_BT.shape[1]]
    labels_BS = labels_BT.repeat(1, streams)
    loss_sum, count = hub.head.loss(hidden_BSD, labels_BS, hub.memory, smoothing=config.eps)
    return loss_sum / streams, torch.div(count, streams, rounding_mode="floor")
