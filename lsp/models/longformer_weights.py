"""Weights of the Longformer under their published names, in both directions.

The modules carry the published names; published files besides have a second name for the head's
bias, may leave out what is tied, and may hold a pooler, which no language model reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from lsp.models.longformer import Longformer
from lsp.models.longformer_config import LongformerConfig
from lsp.models.published_weights import check_weights

DROPPED = re.compile(r"(^lm_head\.bias|\.position_ids|^longformer\.pooler\..*)$")
"""Names in published files that hold no weight of their own, or none of a language model's."""

EMBEDDING, DECODER = "longformer.embeddings.word_embeddings.weight", "lm_head.decoder.weight"
BIAS, SECOND_BIAS = "lm_head.decoder.bias", "lm_head.bias"


def to_published(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a trained model under their published names; no copies but of the bias."""
    weights = {name: weight.detach() for name, weight in state_dict.items()}
    # Files hold both of its names where nothing is tied, and no memory twice.
    return weights | {SECOND_BIAS: weights[BIAS].clone()}


def from_published(
    state_dict: Mapping[str, torch.Tensor], config: LongformerConfig
) -> dict[str, torch.Tensor]:
    """The weights of a published model, ready for `Longformer(config).load_state_dict`; no copies.

    Raises:
        UserError: A weight is missing, unknown or of another shape than the config says.
    """
    with torch.device("meta"):
        expected = {n: tuple(w.shape) for n, w in Longformer(config).state_dict().items()}
    weights = {name: w for name, w in state_dict.items() if not DROPPED.search(name)}
    if SECOND_BIAS in state_dict:
        weights.setdefault(BIAS, state_dict[SECOND_BIAS])
    if config.tie_word_embeddings and EMBEDDING in weights:
        weights.setdefault(DECODER, weights[EMBEDDING])
    check_weights(weights, expected, "a Longformer", "num_hidden_layers")
    return weights
