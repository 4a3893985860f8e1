"""From a settled config to a model."""

from __future__ import annotations

from typing import Any

import torch

from lsp.core.errors import UserError
from lsp.models.hub import keys, masks
from lsp.models.hub.adapter import HubModel
from lsp.models.hub.config import HubConfig, residuals
from lsp.models.hub.losses import experts, parts_of
from lsp.models.hub.recompute import layers_of, recompute
from lsp.models.memory import MemoryConfig


def build(config: HubConfig, memory: MemoryConfig | None = None) -> HubModel:
    """The model with fresh weights from the global generator."""
    import transformers

    memory = (memory or MemoryConfig()).settled(residuals(config))
    assert config.model_type is not None
    assert config.objective is not None
    row = config.row
    published = keys.make_config(config.model_type, config.settled)
    published.use_cache = False
    head: Any = getattr(transformers, row.heads[config.objective])
    if config.objective == "replaced_token":
        published.num_labels = 1  # of classes that are not made for telling tokens apart alone
    model = head(published)

    def prepare(model: Any) -> None:
        masks.prepare(row, model, config)
        experts.prepare(model)
        if memory.residual == "recomputed":
            recompute(layers_of(row, model))

    prepare(model)
    parts = parts_of(model, config.objective, config.generator, prepare)
    return HubModel(config, model, memory, parts)


def begin(model: HubModel) -> None:
    """Sets the weights that a fresh run of this model goes on from, if it is to have any.

    Raises:
        UserError: They cannot be read.
    """
    config = model.config
    if not config.weights:
        return
    try:
        source = type(model.model).from_pretrained(
            config.name, config=model.model.config, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise UserError(
            f"architecture.name={config.name} has no weights that can be read: {reason}"
        ) from error
    model.model.load_state_dict(source.state_dict())
