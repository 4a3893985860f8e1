"""Weights of NEZHA under their published names, in both directions.

The modules carry the published names; published files besides have a second name for the head's
bias, may leave out what is tied, and may hold the fixed table of every layer, or what tells which
text follows which, where only tokens are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from lsp.models.nezha import Nezha
from lsp.models.nezha_config import NezhaConfig
from lsp.models.published_weights import check_weights

EMBEDDING, DECODER = "nezha.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
BIAS, SECOND_BIAS = "cls.predictions.decoder.bias", "cls.predictions.bias"

DROPPED = re.compile(r"(^cls\.predictions\.bias|\.positions_encoding|\.(position|token_type)_ids)$")
"""Names in published files that hold no weight of their own."""
PAIRS = re.compile(r"^(nezha\.pooler|cls\.seq_relationship)\.")
"""Names of what tells which text follows which."""


def to_published(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a trained model under their published names; no copies but of the bias."""
    weights = {name: weight.detach() for name, weight in state_dict.items()}
    # Files hold both of its names where nothing is tied, and no memory twice.
    return weights | {SECOND_BIAS: weights[BIAS].clone()}


def from_published(
    state_dict: Mapping[str, torch.Tensor], config: NezhaConfig
) -> dict[str, torch.Tensor]:
    """The weights of a published model, ready for `Nezha(config).load_state_dict`; no copies.

    Raises:
        UserError: A weight is missing, unknown or of another shape than the config says.
    """
    with torch.device("meta"):
        expected = {n: tuple(w.shape) for n, w in Nezha(config).state_dict().items()}
    weights = {
        name: weight
        for name, weight in state_dict.items()
        if not DROPPED.search(name) and (config.sentence_pairs or not PAIRS.match(name))
    }
    if SECOND_BIAS in state_dict:
        weights.setdefault(BIAS, state_dict[SECOND_BIAS])
    if config.tie_word_embeddings and EMBEDDING in weights:
        weights.setdefault(DECODER, weights[EMBEDDING])
    check_weights(weights, expected, "a NEZHA", "num_hidden_layers")
    return weights
