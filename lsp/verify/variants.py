"""The native architectures in tiny sizes, with every kind of attention that they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lsp.models import registry
from lsp.models.interface import LanguageModel
from lsp.models.memory import MemoryConfig

LENGTH, VOCABULARY, HEADS = 64, 64, 4
"""What a process holds of a row, some chunks of every kind; tokens; heads of attention."""


@dataclass(frozen=True)
class Variant:
    """An architecture with a kind of attention.

    Attributes:
        architecture: Its name in the registry.
        attention: What distinguishes it from the others, in words.
        values: Of the config.
        objectives: Those that it is trained with.
    """

    architecture: str
    attention: str
    values: dict[str, Any]
    objectives: tuple[str, ...] = ("causal", "masked")


SIZES: dict[str, dict[str, Any]] = {
    "reformer": {
        "hidden_size": 32,
        "feed_forward_size": 48,
        "num_attention_heads": HEADS,
        "attention_head_size": 8,
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
        "num_hashes": 2,
        "num_buckets": 8,
        "hidden_dropout_prob": 0.1,
        "local_attention_probs_dropout_prob": 0.1,
        "lsh_attention_probs_dropout_prob": 0.1,
    },
    "longformer": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "attention_window": 16,
    },
    "transformer_xl": {
        "d_model": 32,
        "d_embed": 32,
        "d_inner": 48,
        "n_layer": 2,
        "n_head": HEADS,
        "d_head": 8,
        "mem_len": 64,
        "clamp_len": -1,
        "cutoffs": [],
        "div_val": 1,
        "same_length": False,
    },
    "mega": {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "ema_projection_size": 4,
        "shared_representation_size": 8,
        "nffn_hidden_size": 48,
        "use_chunking": True,
        "chunk_size": 16,
    },
    "nezha": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "max_relative_position": 8,
    },
}
"""Dropout is on: its masks must not depend on what is in other documents either."""

VARIANTS = (
    Variant("reformer", "local", {"attn_layers": ["local", "local"]}),
    Variant("reformer", "lsh", {"attn_layers": ["lsh", "lsh"]}),
    Variant("reformer", "local, lsh", {"attn_layers": ["local", "lsh"]}),
    Variant(
        "reformer",
        "chunks after",
        {
            "attn_layers": ["local", "lsh"],
            "local_num_chunks_after": 1,
            "lsh_num_chunks_after": 1,
        },
        ("masked",),
    ),
    Variant("longformer", "window", {}),
    Variant("longformer", "window per layer", {"attention_window": [8, 32]}),
    Variant("longformer", "gaps per head", {"attention_dilation": [1, [1, 1, 2, 4]]}),
    Variant("longformer", "global tokens", {"global_tokens": 2}, ("masked",)),
    Variant("longformer", "window, two streams", {"residual": "reversible"}),
    Variant("transformer_xl", "relative", {}, ("causal",)),
    Variant(
        "transformer_xl",
        "relative, same length",
        {"same_length": True, "clamp_len": 40},
        ("causal",),
    ),
    Variant("transformer_xl", "learned relative", {"attn_type": 1}, ("causal",)),
    Variant("transformer_xl", "absolute", {"attn_type": 2}, ("causal",)),
    Variant("transformer_xl", "learned absolute", {"attn_type": 3}, ("causal",)),
    Variant(
        "transformer_xl",
        "memory across documents",
        {"memory_across_documents": True},
        ("causal",),
    ),
    Variant("mega", "chunks", {}),
    Variant("mega", "whole, laplace", {"use_chunking": False, "attention_activation": "laplace"}),
    Variant(
        "mega",
        "chunks, relu2, simple, truncated",
        {
            "attention_activation": "relu2",
            "relative_positional_bias": "simple",
            "truncation": 20,
            "use_feature_dropout": True,
        },
    ),
    Variant("nezha", "relative, clipped", {}),
    Variant("nezha", "relative, all told apart", {"max_relative_position": 64}, ("masked",)),
)


def config_of(variant: Variant, *, objective: str, degree: int = 1) -> Any:
    """The completed config of a variant, for rows that so many processes share."""
    architecture = registry.get(variant.architecture)
    return architecture.resolve(
        architecture.config_class(**SIZES[variant.architecture] | variant.values),
        vocab_size=VOCABULARY,
        sequence_length=LENGTH * degree,
        objective=objective,
    )


def build(variant: Variant, *, objective: str, residual: str, degree: int = 1) -> LanguageModel:
    """The model of a variant, with fresh weights from the global generator."""
    architecture = registry.get(variant.architecture)
    config = config_of(variant, objective=objective, degree=degree)
    return architecture.build(config, MemoryConfig(residual=residual))
