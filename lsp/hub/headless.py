"""Language models of published checkpoints that have another head, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lsp.models import registry
from lsp.models.heads.registry import READERS, build_head
from lsp.models.heads.weights import OURS, from_published

LANGUAGE_MODEL = ("lm_head.", "mlm_head.", "crit.", "cls.predictions.")
SEED = 0
"""Of fresh heads, so that an import can be repeated."""


def is_headless(weights: Mapping[str, torch.Tensor], config: Any) -> bool:
    """Whether weights are of a model that we know, but of no language model.

    Args:
        weights: By published names.
        config: Of ours.
    """
    reader = READERS.get(registry.name_of(config))
    if reader is None:
        return False
    prefix = f"{reader.prefix}."
    embeddings = ("embeddings.", "word_emb.")
    known = any(name.removeprefix(prefix).startswith(embeddings) for name in weights)
    return known and not any(name.startswith(LANGUAGE_MODEL) for name in weights)


def with_fresh_head(
    weights: Mapping[str, torch.Tensor], config: Any
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """A language model of ours on published weights that have none.

    Args:
        weights: By published names.
        config: Of ours.

    Returns:
        Weights by our names, and the published names of those that are fresh.

    Raises:
        UserError: The other weights are not those that the config describes.
    """
    task = "causal_lm" if config.is_decoder else "masked_lm"
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = build_head(config, task)
    state, fresh = from_published(weights, model)
    return {name.removeprefix(OURS): weight for name, weight in state.items()}, fresh
