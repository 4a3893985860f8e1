"""Weights of Mega under their published names, in both directions.

The modules carry the published names, but for the head's, which differ between the published
classes. Published files besides hold a number without a meaning for each rotary bias, may leave out
what is tied, and may hold a pooler, which no language model reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from lsp.models.mega import Mega
from lsp.models.mega_config import MegaConfig
from lsp.models.published_weights import check_weights

DROPPED = re.compile(r"(\.rel_pos_bias\._float_tensor|^mega\.pooler\..*)$")
"""Names in published files that hold no weight of a language model."""
EMBEDDING, DECODER = "mega.embedding_layer.word_embeddings.weight", "lm_head.decoder.weight"
DENSE, OUR_DENSE = "dense.", "lm_head.dense."
OUR_DECODER = "lm_head.decoder."
CAUSAL_HEAD, MASKED_HEAD = "lm_head.", "mlm_head."


def head_name(config: MegaConfig) -> str:
    """What the published class calls its projection onto the vocabulary."""
    return CAUSAL_HEAD if config.is_decoder else MASKED_HEAD


def to_published(
    state_dict: Mapping[str, torch.Tensor], config: MegaConfig
) -> dict[str, torch.Tensor]:
    """The weights of a trained model under their published names; no copies."""
    weights = {}
    for name, weight in state_dict.items():
        new = name
        if name.startswith(OUR_DENSE):
            new = DENSE + name.removeprefix(OUR_DENSE)
        elif name.startswith(OUR_DECODER):
            new = head_name(config) + name.removeprefix(OUR_DECODER)
        weights[new] = weight.detach()
    return weights | without_meaning(config)


def without_meaning(config: MegaConfig) -> dict[str, torch.Tensor]:
    """The numbers that published files hold for rotary biases."""
    if config.relative_positional_bias != "rotary":
        return {}
    layers = range(config.num_hidden_layers)
    name = "mega.layers.{}.mega_layer.rel_pos_bias._float_tensor"
    return {name.format(number): torch.zeros(1) for number in layers}


def from_published(
    state_dict: Mapping[str, torch.Tensor], config: MegaConfig
) -> dict[str, torch.Tensor]:
    """The weights of a published model, ready for `Mega(config).load_state_dict`; no copies.

    Raises:
        UserError: A weight is missing, unknown or of another shape than the config says.
    """
    with torch.device("meta"):
        expected = {n: tuple(w.shape) for n, w in Mega(config).state_dict().items()}
    weights = {}
    for name, weight in state_dict.items():
        if DROPPED.search(name):
            continue
        new = name
        for published, ours in (
            (DENSE, OUR_DENSE),
            (CAUSAL_HEAD, OUR_DECODER),
            (MASKED_HEAD, OUR_DECODER),
        ):
            if name.startswith(published):
                new = ours + name.removeprefix(published)
        weights[new] = weight
    if config.tie_word_embeddings and EMBEDDING in weights:
        weights.setdefault(DECODER, weights[EMBEDDING])
    check_weights(weights, expected, "a Mega", "num_hidden_layers, bidirectional and the sizes")
    return weights
