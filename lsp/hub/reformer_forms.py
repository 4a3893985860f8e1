"""The Reformer as `transformers` has it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lsp.core.errors import UserError
from lsp.hub.form import PublishedForm
from lsp.models import reformer_config, reformer_weights
from lsp.models.interface import LanguageModel
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig


def _reformer_published(config: Any, form: PublishedForm) -> dict[str, Any]:
    """Content of `config.json` for a completed config.

    The number format is that of the arithmetic. It is fp32 whatever the files hold, because the
    published model refuses to compute in another one: its axial positions stay in fp32.

    Raises:
        UserError: Something that the weights depend on is not settled.
    """
    values: dict[str, Any] = config.to_dict()
    if "lsh" in values["attn_layers"] and values["num_buckets"] is None:
        raise UserError(
            "architecture.num_buckets is not settled, so a reader of the export would hash "
            "differently at every length: train for a step, or give the number used"
        )
    return values | {"architectures": [form.model_class], "dtype": "float32"}


def _reformer_logits(
    model: LanguageModel, ids_BL: torch.Tensor, positions_K: torch.Tensor
) -> torch.Tensor:
    assert isinstance(model, Reformer)
    logits: torch.Tensor = model.lm_head(model.hidden_states(ids_BL)[:, positions_K])
    return logits


CAUSAL = PublishedForm(
    architecture="reformer",
    model_type="reformer",
    title="Reformer",
    auto_class="AutoModelForCausalLM",
    model_class="ReformerModelWithLMHead",
    pipeline="text-generation",
    generates=True,
    keeps_logits=True,
    config_class=ReformerConfig,
    published_config=_reformer_published,
    ignored_keys=reformer_config.IGNORED_KEYS,
    to_published=lambda weights, _: reformer_weights.to_published(weights),
    from_published=reformer_weights.from_published,
    some_logits=_reformer_logits,
)

MASKED = dataclasses.replace(
    CAUSAL,
    auto_class="AutoModelForMaskedLM",
    model_class="ReformerForMaskedLM",
    pipeline="fill-mask",
    generates=False,
    keeps_logits=False,
)

FORMS = (CAUSAL, MASKED)


def form_of(config: ReformerConfig) -> PublishedForm:
    """The published form of a Reformer."""
    return CAUSAL if config.is_decoder else MASKED
