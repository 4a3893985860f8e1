"""NEZHA as `transformers` had it, with code for the releases that have it no more."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lsp.hub.form import PublishedForm
from lsp.models import nezha_config, nezha_weights
from lsp.models.interface import LanguageModel
from lsp.models.nezha import Nezha
from lsp.models.nezha_config import NezhaConfig

_CONFIGURATION, _MODELING = "configuration_nezha", "modeling_nezha"
HEADS = {
    "AutoModelForNextSentencePrediction": f"{_MODELING}.NezhaForNextSentencePrediction",
    "AutoModelForSequenceClassification": f"{_MODELING}.NezhaForSequenceClassification",
    "AutoModelForMultipleChoice": f"{_MODELING}.NezhaForMultipleChoice",
    "AutoModelForTokenClassification": f"{_MODELING}.NezhaForTokenClassification",
    "AutoModelForQuestionAnswering": f"{_MODELING}.NezhaForQuestionAnswering",
}
MAP = {
    "AutoConfig": f"{_CONFIGURATION}.NezhaConfig",
    "AutoModel": f"{_MODELING}.NezhaModel",
    "AutoModelForMaskedLM": f"{_MODELING}.NezhaForMaskedLM",
}


def _config(config: NezhaConfig, form: PublishedForm) -> dict[str, Any]:
    values: dict[str, Any] = config.to_dict()
    del values["sentence_pairs"]  # the class says it
    return values | {
        "auto_map": dict(form.auto_map),
        "architectures": [form.model_class],
        "dtype": "float32",
    }


def _some_logits(
    model: LanguageModel, ids_BL: torch.Tensor, positions_K: torch.Tensor
) -> torch.Tensor:
    assert isinstance(model, Nezha)
    logits: torch.Tensor = model.lm_head(model.hidden_states(ids_BL)[:, positions_K])
    return logits


def _tied(config: NezhaConfig) -> tuple[str, ...]:
    names = (nezha_weights.DECODER, nezha_weights.BIAS)
    return names if config.tie_word_embeddings else ()


def _remark(config: NezhaConfig) -> str:
    if config.is_decoder:
        return ""
    return (
        "`transformers` up to 4.x has a class of its own for it, and opens this folder without the "
        "code.\n"
    )


MASKED = PublishedForm(
    architecture="nezha",
    model_type=nezha_config.MODEL_TYPE,
    title="NEZHA",
    auto_class="AutoModelForMaskedLM",
    model_class="NezhaForMaskedLM",
    pipeline="fill-mask",
    generates=False,
    keeps_logits=False,
    config_class=NezhaConfig,
    published_config=_config,
    ignored_keys=nezha_config.IGNORED_KEYS,
    to_published=lambda weights, _: nezha_weights.to_published(weights),
    from_published=nezha_weights.from_published,
    some_logits=_some_logits,
    tied=_tied,
    remark=_remark,
    auto_map=MAP | HEADS,
)

PAIRS = dataclasses.replace(
    MASKED,
    auto_class="AutoModelForPreTraining",
    model_class=nezha_config.PAIRS_CLASS,
    output="prediction_logits",
    auto_map=MAP | {"AutoModelForPreTraining": f"{_MODELING}.{nezha_config.PAIRS_CLASS}"} | HEADS,
)

CAUSAL = dataclasses.replace(
    MASKED,
    auto_class="AutoModelForCausalLM",
    model_class="NezhaForCausalLM",
    pipeline="text-generation",
    generates=True,
    keeps_logits=True,
    auto_map={
        "AutoConfig": MAP["AutoConfig"],
        "AutoModel": MAP["AutoModel"],
        "AutoModelForCausalLM": f"{_MODELING}.NezhaForCausalLM",
    },
)

FORMS = (MASKED, PAIRS, CAUSAL)


def form_of(config: NezhaConfig) -> PublishedForm:
    """The published form of a NEZHA."""
    if config.is_decoder:
        return CAUSAL
    return PAIRS if config.sentence_pairs else MASKED
