"""What a training step of a published model computes, from its config and its weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from lsp.models.hub.lengths import MRA_BLOCK

EXPERTS = ".experts."
SHARED = ".albert_layer_groups."
"""Parts of the names of weights that a token meets not just once."""


def per_token(model: Any, sequence_length: int) -> float:
    """Floating-point operations; see `LanguageModel.flops_per_token`.

    Args:
        model: A `HubModel`.
        sequence_length: Positions in a row.
    """
    published, config = model.model, model.config
    tables = {
        id(module.weight) for module in published.modules() if isinstance(module, nn.Embedding)
    }
    weights = sum(
        # Where weights are sharded, they are not here.
        getattr(p, "ds_numel", p.numel()) * _times(config, name)
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) not in tables
    )
    head = published.get_output_embeddings()
    if head is not None and id(head.weight) in tables:  # it reads with the table of the tokens
        weights += getattr(head.weight, "ds_numel", head.weight.numel())
    scores = _layers(config) * _keys(config, sequence_length) * config.value("hidden_size")
    return 6.0 * weights + 12.0 * scores


def _times(config: Any, name: str) -> float:
    """How often a token meets a weight: ALBERT's layers are the same, experts are some of many."""
    if SHARED in name:
        return float(config.value("num_hidden_layers")) / float(config.value("num_hidden_groups"))
    if EXPERTS not in name:
        return 1.0
    experts = config.value("num_local_experts") or config.value("num_experts") or 1
    chosen = {"mixtral": config.value("num_experts_per_tok"), "nllb-moe": 2}.get(config.type, 1)
    return float(chosen) / float(experts)


def _layers(config: Any) -> int:
    """Attentions that a token goes through: a decoder's layer behind an encoder has two."""
    if config.row.kind != "encoder_decoder":
        return config.value("num_hidden_layers") or 0

    def number(*keys: str) -> int:
        return next((n for n in map(config.value, keys) if isinstance(n, int)), 0)

    encoder = number("encoder_layers", "num_encoder_layers", "num_layers")
    return encoder + 2 * number("decoder_layers", "num_decoder_layers")


def _keys(config: Any, length: int) -> int:
    """Positions that a position is scored with."""
    kind = config.row.cost.partition("·")[2]
    if config.row.cost == "L" or kind == "log L":
        return 0
    if kind == "attention_window":
        given = config.value(kind)
        return min(length, (given if isinstance(given, int) else max(given)) + 1)
    if kind == "block_size":
        return min(length, (5 + (config.value("num_random_blocks") or 0)) * config.value(kind))
    if kind == "block_per_row":
        return min(length, MRA_BLOCK * config.value(kind))
    if kind == "local_radius":
        return min(length, 2 * config.value(kind) + 1)
    return min(length, config.value(kind)) if kind else length
