"""From a settled config to a model."""

from __future__ import annotations

from typing import Any

import torch

from lsp.core.errors import UserError, require
from lsp.models.hub import feed_forward, keys, masks
from lsp.models.hub.adapter import HubModel
from lsp.models.hub.config import HubConfig, residuals
from lsp.models.hub.losses import experts, parts_of, permutation
from lsp.models.hub.recompute import layers_of, recompute
from lsp.models.hub.unused import freeze_unused
from lsp.models.memory import MemoryConfig

POOLER = "pooler"
"""In the names of weights that belong to a head, though published bodies have them."""


def head_class(name: str) -> Any:
    """The class of a model with a head, by the published name that a row has for it."""
    import transformers

    published: Any = getattr(transformers, name)
    if name.endswith("Model") and "LMHead" not in name:
        from lsp.models.hub.own_heads import OWN

        return OWN.get(name, published)
    return published


def build(config: HubConfig, memory: MemoryConfig | None = None) -> HubModel:
    """The model with fresh weights from the global generator."""
    memory = (memory or MemoryConfig()).settled(residuals(config))
    assert config.model_type is not None
    assert config.objective is not None
    row = config.row
    published = keys.make_config(config.model_type, config.settled)
    published.use_cache = False
    head = head_class(row.heads[config.objective])
    if config.objective == "replaced_token":
        published.num_labels = 1  # of classes that are not made for telling tokens apart alone
    model = head(published)

    def prepare(model: Any) -> None:
        masks.prepare(row, model, config)
        experts.prepare(model)
        permutation.prepare(model)
        feed_forward.tile(row, model, memory)
        if memory.residual == "recomputed":
            recompute(layers_of(row, model))

    prepare(model)
    parts = parts_of(model, config.objective, config.generator, prepare)
    return HubModel(config, model, memory, parts)


def begin(model: HubModel, fresh: bool) -> None:
    """Gets a model ready for training.

    Args:
        model: Whole, on the host.
        fresh: Whether it begins with published weights, where the config asks for them.

    Raises:
        UserError: They cannot be read.
    """
    config = model.config
    if fresh and config.weights:
        load_published(model.model, str(config.name))
    freeze_unused(model)


def load_published(model: Any, name: str) -> None:
    """Sets the weights of a published model, but for a head that it was published without.

    Raises:
        UserError: They cannot be read, are of other shapes, or leave some of the body out.
    """
    try:
        source, told = type(model).from_pretrained(
            name, config=model.config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise UserError(
            f"architecture.name={name} has no weights that can be read: {reason}"
        ) from error
    body = {id(parameter) for parameter in source.base_model.parameters()}
    lost = sorted(
        weight
        for weight, parameter in source.named_parameters()
        if weight in told["missing_keys"] and id(parameter) in body and POOLER not in weight
    )
    require(
        not lost,
        f"architecture.name={name} lacks {len(lost)} weights of its {type(model).__name__}, "
        f"{lost[:1]} first, which would begin at random: use the folder of a whole model, or "
        "architecture.weights=false",
    )
    model.load_state_dict(source.state_dict())
