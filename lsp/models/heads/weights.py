"""Weights of models with heads under their published names, in both directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lsp.core.errors import UserError
from lsp.models.heads.models import HeadedModel
from lsp.models.published_weights import check_weights

OURS = "backbone."
POOLER = "pooler."


def published_names(model: HeadedModel) -> dict[str, str]:
    """The published name of each of our weights."""
    reader = model.reader

    def published(name: str) -> str:
        # The pooler belongs to the published model, not to its head.
        if name.startswith(POOLER):
            return f"{reader.prefix}.{name}"
        return reader.published_name(name.removeprefix(OURS))

    return {name: published(name) for name in model.state_dict()}


def to_published(model: HeadedModel) -> dict[str, torch.Tensor]:
    """The weights of a model under their published names; no copies."""
    names = published_names(model)
    weights = {names[name]: weight.detach() for name, weight in model.state_dict().items()}
    return weights | model.reader.published_besides(weights)


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
    state, names, prefix = model.state_dict(), published_names(model), model.reader.prefix
    shapes = {names[name]: tuple(weight.shape) for name, weight in state.items()}
    weights = _completed(weights, model, names)
    body = {p for n, p in names.items() if p.startswith(f"{prefix}.") and n.startswith(OURS)}
    # What a head shares with the model is the model's.
    same = _same(model, names)
    of_head = {name for name in shapes if not body.intersection(same.get(name, [name]))}
    fresh = of_head if fresh_head else of_head - weights.keys()
    for name in sorted(of_head - fresh):
        shape = tuple(weights[name].shape)
        if shape != shapes[name]:
            raise UserError(
                f"{name} is {shape} in the published folder, but {shapes[name]} with "
                f"num_labels={model.labels.num_labels}: leave num_labels out, or use "
                "fresh_head=True"
            )
    in_body = {
        name: weight
        for name, weight in weights.items()
        if name in body or (name.startswith(f"{prefix}.") and not model.reader.dropped(name))
    }
    check_weights(
        {name: weight for name, weight in in_body.items() if name not in of_head},
        {name: shapes[name] for name in body},
        f"a {type(model.config).__name__.removesuffix('Config')}",
        "config.json with the weights",
    )
    taken = {n: state[n] if p in fresh else weights[p] for n, p in names.items()}
    return taken, tuple(sorted(fresh))


def _same(model: HeadedModel, names: Mapping[str, str]) -> dict[str, list[str]]:
    """The published names of each weight that has several, by each of them."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(names[name])
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def _completed(
    weights: Mapping[str, torch.Tensor], model: HeadedModel, names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The weights, with the model's prefix, and under all names that they have."""
    prefix = model.reader.prefix
    if not any(name.startswith(f"{prefix}.") for name in weights):
        weights = {f"{prefix}.{name}": weight for name, weight in weights.items()}
    completed = dict(weights)
    for other, name in model.reader.other_names.items():
        if other in weights:
            completed.setdefault(name, weights[other])
    for name, group in _same(model, names).items():
        known = [completed[one] for one in group if one in completed]
        if known:
            completed.setdefault(name, known[0])
    return completed
