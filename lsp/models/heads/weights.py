"""Weights of models with heads under their published names, in both directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lsp.core.errors import UserError
from lsp.models import longformer_weights, reformer_weights
from lsp.models.heads.models import HeadedModel
from lsp.models.published_weights import check_weights

OURS = "backbone."
DROPPED = {"reformer": reformer_weights.DROPPED, "longformer": longformer_weights.DROPPED}
"""Names in published files that hold no weight of their own, by the model's."""


def published_names(model: HeadedModel) -> dict[str, str]:
    """The published name of each of our weights."""
    prefix = model.reader.prefix

    def published(name: str) -> str:
        # The pooler belongs to the published model, not to its head.
        return f"{prefix}.{name}" if name.startswith("pooler.") else name.removeprefix(OURS)

    return {name: published(name) for name in model.state_dict()}


def to_published(model: HeadedModel) -> dict[str, torch.Tensor]:
    """The weights of a model under their published names; no copies."""
    names = published_names(model)
    weights = {names[name]: weight.detach() for name, weight in model.state_dict().items()}
    if longformer_weights.BIAS in weights:
        weights[longformer_weights.SECOND_BIAS] = weights[longformer_weights.BIAS]
    return weights


def from_published(
    weights: Mapping[str, torch.Tensor], model: HeadedModel, *, fresh_head: bool = False
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Weights for `model.load_state_dict`, from a published model with this head or any other.

    Args:
        weights: By published names; of the whole model, or of the model without a head.
        model: Its fresh weights stand in for those of a head that is not there.
        fresh_head: Whether to begin with a fresh head although there is one.

    Returns:
        The weights, without copies, and the published names of those that are fresh.

    Raises:
        UserError: The weights are not those of the model, or its head has other labels.
    """
    weights = _completed(weights, model)
    state, names = model.state_dict(), published_names(model)
    of_head = {name for name in names if not name.startswith(f"{OURS}{model.reader.prefix}.")}
    there = {name for name in of_head if names[name] in weights}
    fresh = of_head if fresh_head else of_head - there
    for name in sorted(of_head - fresh):
        shape, expected = tuple(weights[names[name]].shape), tuple(state[name].shape)
        if shape != expected:
            raise UserError(
                f"{names[name]} is {shape} in the published folder, but {expected} with "
                f"num_labels={model.labels.num_labels}: leave num_labels out, or use "
                "fresh_head=True"
            )
    body = {name: tuple(state[name].shape) for name in names if name not in of_head}
    found = {name: weights[published] for name, published in names.items() if published in weights}
    check_weights({n: w for n, w in found.items() if n in body}, body, "a model", "config.json")
    taken = {name: state[name] if name in fresh else found[name] for name in names}
    return taken, tuple(sorted(names[name] for name in fresh))


def _completed(weights: Mapping[str, torch.Tensor], model: HeadedModel) -> dict[str, torch.Tensor]:
    """The weights, with a model's own prefix, and second names for what is tied."""
    prefix = model.reader.prefix
    if not any(name.startswith(f"{prefix}.") for name in weights):
        weights = {f"{prefix}.{name}": weight for name, weight in weights.items()}
    dropped = DROPPED[prefix]
    kept = {
        name: weight
        for name, weight in weights.items()
        if not dropped.search(name) or ".pooler." in name
    }
    bias = weights.get(longformer_weights.SECOND_BIAS)
    if bias is not None and prefix == "longformer":
        kept.setdefault(longformer_weights.BIAS, bias)
    embedding = longformer_weights.EMBEDDING
    if getattr(model.config, "tie_word_embeddings", False) and embedding in kept:
        kept.setdefault(longformer_weights.DECODER, kept[embedding])
    return kept
