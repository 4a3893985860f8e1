"""Weights of the Reformer under their published names, in both directions.

The modules carry the published names, so the table has only what published files hold besides:
constants that old releases saved, and a second name for the head's bias.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from lsp.models.published_weights import check_weights
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig

DROPPED = re.compile(r"(\.(self_)?mask_value_float(16|32)|^lm_head\.decoder\.bias|\.position_ids)$")
"""Names in published files that hold no weight of their own."""


def shapes(config: ReformerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a model; allocates none of them."""
    with torch.device("meta"):
        model = Reformer(config)
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def to_published(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a trained model under their published names; no copies."""
    return {name: weight.detach() for name, weight in state_dict.items()}


def from_published(
    state_dict: Mapping[str, torch.Tensor], config: ReformerConfig
) -> dict[str, torch.Tensor]:
    """The weights of a published model, ready for `Reformer(config).load_state_dict`; no copies.

    Raises:
        UserError: A weight is missing, unknown or of another shape than the config says.
    """
    expected = shapes(config)
    weights = {name: w for name, w in state_dict.items() if not DROPPED.search(name)}
    bias = state_dict.get("lm_head.decoder.bias")
    if bias is not None:
        weights.setdefault("lm_head.bias", bias)
    check_weights(weights, expected, "a Reformer", "attn_layers and axial_pos_embds")
    return weights
