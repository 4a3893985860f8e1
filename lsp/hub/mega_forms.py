"""Mega as `transformers` had it, with code for the releases that have it no more."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lsp.hub.form import PublishedForm
from lsp.models import mega_config, mega_weights
from lsp.models.interface import LanguageModel
from lsp.models.mega import Mega
from lsp.models.mega_config import MegaConfig

_CONFIGURATION, _MODELING = "configuration_mega", "modeling_mega"


def _config(config: MegaConfig, form: PublishedForm) -> dict[str, Any]:
    return config.to_dict() | {
        "auto_map": dict(form.auto_map),
        "architectures": [form.model_class],
        "dtype": "float32",
    }


def _tied(config: MegaConfig) -> tuple[str, ...]:
    return (f"{mega_weights.head_name(config)}weight",) if config.tie_word_embeddings else ()


def _some_logits(
    model: LanguageModel, ids_BL: torch.Tensor, positions_K: torch.Tensor
) -> torch.Tensor:
    assert isinstance(model, Mega)
    logits: torch.Tensor = model.lm_head(model.hidden_states(ids_BL)[:, positions_K])
    return logits


MASKED = PublishedForm(
    architecture="mega",
    model_type=mega_config.MODEL_TYPE,
    title="Mega",
    auto_class="AutoModelForMaskedLM",
    model_class="MegaForMaskedLM",
    pipeline="fill-mask",
    generates=False,
    keeps_logits=False,
    config_class=MegaConfig,
    published_config=_config,
    ignored_keys=mega_config.IGNORED_KEYS | {"add_cross_attention"},
    to_published=mega_weights.to_published,
    from_published=mega_weights.from_published,
    some_logits=_some_logits,
    tied=_tied,
    auto_map={
        "AutoConfig": f"{_CONFIGURATION}.MegaConfig",
        "AutoModel": f"{_MODELING}.MegaModel",
        "AutoModelForMaskedLM": f"{_MODELING}.MegaForMaskedLM",
    },
)

CAUSAL = dataclasses.replace(
    MASKED,
    auto_class="AutoModelForCausalLM",
    model_class="MegaForCausalLM",
    pipeline="text-generation",
    generates=True,
    keeps_logits=True,
    auto_map={
        "AutoConfig": f"{_CONFIGURATION}.MegaConfig",
        "AutoModel": f"{_MODELING}.MegaModel",
        "AutoModelForCausalLM": f"{_MODELING}.MegaForCausalLM",
    },
)

FORMS = (MASKED, CAUSAL)


def form_of(config: MegaConfig) -> PublishedForm:
    """The published form by what it predicts."""
    return CAUSAL if config.is_decoder else MASKED
