"""Transformer-XL as `transformers` had it, with code for the releases that have it no more."""

from __future__ import annotations

from typing import Any

import torch

from lsp.hub.form import PublishedForm
from lsp.models import transformer_xl_config, transformer_xl_weights
from lsp.models.interface import LanguageModel
from lsp.models.transformer_xl import TransformerXL
from lsp.models.transformer_xl_config import RELATIVE, TransformerXLConfig

LAST_RELEASE = "4.37.2"
"""Of those whose Transformer-XL is exercised here."""

_CONFIGURATION, _MODELING = "configuration_transfo_xl", "modeling_transfo_xl"


def _config(config: TransformerXLConfig, form: PublishedForm) -> dict[str, Any]:
    values: dict[str, Any] = config.to_dict()
    if not config.tie_projs:  # an empty list would share none
        del values["tie_projs"]
    return values | {
        "auto_map": dict(form.auto_map),
        "architectures": [form.model_class],
        "dtype": "float32",
    }


def _tied(config: TransformerXLConfig) -> list[str]:
    # With tie_word_embeddings=false transformers 5 ties no projections either.
    if not config.tie_word_embeddings:
        return []
    layers = len(config.cluster_ends) if config.div_val > 1 else 1
    names = [f"crit.out_layers.{number}.weight" for number in range(layers)]
    if config.div_val > 1 or config.d_model != config.d_embed:
        tied = enumerate(config.tied_projections)
        names += [f"crit.out_projs.{number}" for number, shared in tied if shared]
    return names


def _some_logits(
    model: LanguageModel, ids_BL: torch.Tensor, positions_K: torch.Tensor
) -> torch.Tensor:
    assert isinstance(model, TransformerXL)
    model.recall(None)
    logits: torch.Tensor = model.lm_head(model.hidden_states(ids_BL)[:, positions_K])
    return logits


def _remark(config: TransformerXLConfig) -> str:
    if config.attn_type != RELATIVE or config.sample_softmax > 0:
        return ""
    text = (
        f"`transformers` {LAST_RELEASE} has a class of its own for it, and opens this folder "
        "without the code.\n"
    )
    if not config.zero_memory:
        text += (
            "That class lets every text begin after `mem_len` states of zeros, which this model "
            f"was not trained with: call it with `mems=[torch.zeros(0, 1, {config.d_model})] * "
            f"{config.n_layer}` where a text begins.\n"
        )
    return text


CAUSAL = PublishedForm(
    architecture="transformer_xl",
    model_type=transformer_xl_config.MODEL_TYPE,
    title="Transformer-XL",
    auto_class="AutoModelForCausalLM",
    model_class="TransfoXLLMHeadModel",
    pipeline="text-generation",
    generates=True,
    keeps_logits=True,
    config_class=TransformerXLConfig,
    published_config=_config,
    ignored_keys=transformer_xl_config.IGNORED_KEYS | {"n_token", "ext_len"},
    to_published=transformer_xl_weights.to_published,
    from_published=transformer_xl_weights.from_published,
    some_logits=_some_logits,
    tied=_tied,
    remark=_remark,
    auto_map={
        "AutoConfig": f"{_CONFIGURATION}.TransfoXLConfig",
        "AutoModel": f"{_MODELING}.TransfoXLModel",
        "AutoModelForCausalLM": f"{_MODELING}.TransfoXLLMHeadModel",
        "AutoModelForSequenceClassification": f"{_MODELING}.TransfoXLForSequenceClassification",
    },
)

FORMS = (CAUSAL,)


def form_of(_: TransformerXLConfig) -> PublishedForm:
    """The published form of a Transformer-XL."""
    return CAUSAL
