"""The Longformer as `transformers` has it, and as it has not: causal, with gaps, reversible."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from lsp.hub.form import PublishedForm
from lsp.models import longformer_config, longformer_weights
from lsp.models.interface import LanguageModel
from lsp.models.longformer import Longformer
from lsp.models.longformer_config import LongformerConfig


def _published_config(config: LongformerConfig, form: PublishedForm) -> dict[str, Any]:
    values: dict[str, Any] = config.to_dict() | {"attention_window": config.windows}
    for key in ("attention_dilation", "global_tokens", "is_decoder", "residual"):
        del values[key]
    return values | {"architectures": [form.model_class], "dtype": "float32"}


def _published_logits(
    model: LanguageModel, ids_BL: torch.Tensor, positions_K: torch.Tensor
) -> torch.Tensor:
    assert isinstance(model, Longformer)
    # A reader who gives no mask has no global tokens either.
    hidden = model.hidden_states(ids_BL, global_attention_mask=torch.zeros_like(ids_BL))
    logits: torch.Tensor = model.lm_head(hidden[:, positions_K])
    return logits


def _tied(config: LongformerConfig) -> tuple[str, ...]:
    names = (longformer_weights.DECODER, longformer_weights.BIAS)
    return names if config.tie_word_embeddings else ()


PUBLISHED = PublishedForm(
    architecture="longformer",
    model_type="longformer",
    title="Longformer",
    auto_class="AutoModelForMaskedLM",
    model_class="LongformerForMaskedLM",
    pipeline="fill-mask",
    generates=False,
    keeps_logits=False,
    config_class=LongformerConfig,
    published_config=_published_config,
    ignored_keys=longformer_config.IGNORED_KEYS,
    to_published=lambda weights, _: longformer_weights.to_published(weights),
    from_published=longformer_weights.from_published,
    some_logits=_published_logits,
    tied=_tied,
)


def _bundled_config(config: LongformerConfig, form: PublishedForm) -> dict[str, Any]:
    return config.to_dict() | {
        "model_type": form.model_type,
        "auto_map": dict(form.auto_map),
        "architectures": [form.model_class],
        "dtype": "float32",
    }


def _bundled_weights(
    weights: Mapping[str, torch.Tensor], _: LongformerConfig
) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in weights.items()}


def _bundled_tied(config: LongformerConfig) -> tuple[str, ...]:
    return (longformer_weights.DECODER,) if config.tie_word_embeddings else ()


def _bundled_logits(
    model: LanguageModel, ids_BL: torch.Tensor, positions_K: torch.Tensor
) -> torch.Tensor:
    assert isinstance(model, Longformer)
    logits: torch.Tensor = model.lm_head(model.hidden_states(ids_BL)[:, positions_K])
    return logits


_CONFIGURATION, _MODELING = "configuration_lsp_longformer", "modeling_lsp_longformer"

BUNDLED_MASKED = dataclasses.replace(
    PUBLISHED,
    model_type="lsp_longformer",
    model_class="LspLongformerForMaskedLM",
    published_config=_bundled_config,
    to_published=_bundled_weights,
    some_logits=_bundled_logits,
    tied=_bundled_tied,
    auto_map={
        "AutoConfig": f"{_CONFIGURATION}.LspLongformerConfig",
        "AutoModel": f"{_MODELING}.LspLongformerModel",
        "AutoModelForMaskedLM": f"{_MODELING}.LspLongformerForMaskedLM",
    },
)

BUNDLED_CAUSAL = dataclasses.replace(
    BUNDLED_MASKED,
    auto_class="AutoModelForCausalLM",
    model_class="LspLongformerForCausalLM",
    pipeline="text-generation",
    generates=True,
    keeps_logits=True,
    auto_map={
        "AutoConfig": f"{_CONFIGURATION}.LspLongformerConfig",
        "AutoModel": f"{_MODELING}.LspLongformerModel",
        "AutoModelForCausalLM": f"{_MODELING}.LspLongformerForCausalLM",
    },
)

FORMS = (PUBLISHED, BUNDLED_MASKED, BUNDLED_CAUSAL)


def form_of(config: LongformerConfig) -> PublishedForm:
    """The published form where it can do what this one was trained to do, else one of ours."""
    if config.is_decoder:
        return BUNDLED_CAUSAL
    own = config.reversible or config.length_multiple > 1
    return BUNDLED_MASKED if own else PUBLISHED
