"""Losses that are more than the scores of each position against its label.

Each adds up over rows, whichever come together: weighted so that dividing the sum by the number of
predicted tokens gives the published mean. Only the losses of routers are those of a micro-batch
(`router.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lsp.core.objectives import DECODER, NEXT_TOKEN, PAIRS
from lsp.models.hub.heads import Head, PublishedHead
from lsp.models.hub.losses import (
    encoder_decoder,
    future_ngram,
    one_by_one,
    pairs,
    permutation,
    recurring_span,
    replaced_token,
    router,
)
from lsp.models.hub.losses.one_by_one import Tokens
from lsp.models.hub.losses.projection import Projection

Batch = dict[str, torch.Tensor]
Both = tuple[torch.Tensor, torch.Tensor]
STREAMS = ("prophetnet", "xlm-prophetnet")
"""Model types whose decoder predicts with several streams, whatever the objective."""


@dataclass(frozen=True)
class Family:
    """What a model does for an objective.

    Attributes:
        loss: From a `HubModel` and the tensors of a batch to the summed loss and the number of
            predictions.
        token_losses: The same token by token, as `LanguageModel.token_losses`.
    """

    loss: Callable[[Any, Batch], Both]
    token_losses: Callable[[Any, Batch], Both]


def _predicting(
    loss: Callable[[Any, Batch], Both], predict: Callable[[Any, Batch], Tokens]
) -> Family:
    return Family(loss, lambda hub, batch: one_by_one.token_losses(hub.head, predict(hub, batch)))


_DECODER = _predicting(encoder_decoder.loss, encoder_decoder.predict)
_STREAMS = _predicting(future_ngram.loss, future_ngram.predict)
_PAIRS = _predicting(pairs.loss, pairs.predict)
_ROUTED = _predicting(router.loss, router.predict)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(DECODER, _DECODER),
    **dict.fromkeys(PAIRS, _PAIRS),
    "permutation": Family(permutation.loss, permutation.token_losses),
    "replaced_token": Family(replaced_token.loss, replaced_token.token_losses),
    "recurring_span": Family(recurring_span.loss, recurring_span.token_losses),
}
"""By objective."""


def family_of(model_type: str | None, objective: str | None) -> Family | None:
    """What a model does for an objective; None where scores and labels are all there is to it."""
    if model_type in STREAMS and objective in DECODER:
        return _STREAMS
    if model_type == "mixtral" and objective in NEXT_TOKEN:
        return _ROUTED
    return FAMILIES.get(objective or "")


def head_of(model: Any, path: str, objective: str | None) -> Head:
    """What makes scores of hidden states.

    Args:
        model: As published.
        path: Of its body.
        objective: What it is trained for.
    """
    if objective in DECODER:
        return Projection(model)
    return PublishedHead(model, path)


def parts_of(
    model: Any, objective: str | None, generator: Mapping[str, Any], prepare: Callable[[Any], Any]
) -> dict[str, nn.Module]:
    """What a published model lacks for an objective, by the name it has in ours.

    Parts are trained and saved along with the model, and no part of what is exported.

    Args:
        model: As published.
        objective: What it is trained for.
        generator: Keys of the config of a generator, where there is one.
        prepare: Makes another published model ready, as the first one.
    """
    if objective in PAIRS:
        return pairs.parts(model)
    if objective == "replaced_token":
        other = replaced_token.generator_of(model, generator)
        prepare(other)
        return {"generator": replaced_token.Generator(other)}
    return {}
