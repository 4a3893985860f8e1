"""How `transformers` knows each architecture: classes, `config.json` and weight names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lsp.core.errors import UserError, unknown_choice
from lsp.models import (
    longformer_config,
    longformer_weights,
    reformer_config,
    reformer_weights,
)
from lsp.models.interface import LanguageModel
from lsp.models.longformer import Longformer
from lsp.models.longformer_config import LongformerConfig
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig

CONFIG_FILE = "config.json"

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class PublishedForm:
    """One architecture under one objective, as `transformers` has it.

    Attributes:
        model_type: Its name, ours too.
        auto_class: Opens the folder by its `config.json` alone.
        model_class: What that has to give, and `architectures` in `config.json`.
        pipeline: Task of the model card.
        generates: Whether the class can continue a text.
        keeps_logits: Whether its forward pass can be limited to the scores of some positions.
        config_class: Our dataclass with the published field names.
        published_config: (our config, this form) to the content of `config.json`.
        tied: Names of weights that a file need not hold where the config says they are tied.
        ignored_keys: Keys of published files that say nothing about the model.
        to_published: Weights under our names to weights under the published ones.
        from_published: (published weights, our config) to weights under our names, all there and
            of the right shapes.
        some_logits: (model, (1, L) input ids, (K,) positions) to (1, K, V) scores.
    """

    model_type: str
    auto_class: str
    model_class: str
    pipeline: str
    generates: bool
    keeps_logits: bool
    config_class: type
    published_config: Callable[[Any, PublishedForm], dict[str, Any]]
    ignored_keys: frozenset[str]
    to_published: Callable[[Weights], dict[str, torch.Tensor]]
    from_published: Callable[[Weights, Any], dict[str, torch.Tensor]]
    some_logits: Callable[[LanguageModel, torch.Tensor, torch.Tensor], torch.Tensor]
    tied: tuple[str, ...] = ()


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


_REFORMER = PublishedForm(
    model_type="reformer",
    auto_class="AutoModelForCausalLM",
    model_class="ReformerModelWithLMHead",
    pipeline="text-generation",
    generates=True,
    keeps_logits=True,
    config_class=ReformerConfig,
    published_config=_reformer_published,
    ignored_keys=reformer_config.IGNORED_KEYS,
    to_published=reformer_weights.to_published,
    from_published=reformer_weights.from_published,
    some_logits=_reformer_logits,
)


def _longformer_published(config: Any, form: PublishedForm) -> dict[str, Any]:
    """Content of `config.json` for a completed config.

    Raises:
        UserError: The published model cannot do what this one was trained to do.
    """
    values: dict[str, Any] = config.to_dict()
    if config.length_multiple > 1:
        raise UserError(
            f"architecture.attention_dilation={config.attention_dilation}: the published "
            "Longformer has no gaps, so nothing but lsp could read the export"
        )
    if config.reversible:
        raise UserError(
            "architecture.residual=reversible: the published Longformer has one stream, so nothing "
            "but lsp could read the export"
        )
    for key in ("attention_dilation", "global_tokens", "is_decoder", "residual"):
        del values[key]
    values["attention_window"] = config.windows
    return values | {"architectures": [form.model_class], "dtype": "float32"}


def _longformer_logits(
    model: LanguageModel, ids_BL: torch.Tensor, positions_K: torch.Tensor
) -> torch.Tensor:
    assert isinstance(model, Longformer)
    # A reader who gives no mask has no global tokens either.
    hidden = model.hidden_states(ids_BL, global_attention_mask=torch.zeros_like(ids_BL))
    logits: torch.Tensor = model.lm_head(hidden[:, positions_K])
    return logits


_LONGFORMER = PublishedForm(
    model_type="longformer",
    auto_class="AutoModelForMaskedLM",
    model_class="LongformerForMaskedLM",
    pipeline="fill-mask",
    generates=False,
    keeps_logits=False,
    config_class=LongformerConfig,
    published_config=_longformer_published,
    ignored_keys=longformer_config.IGNORED_KEYS,
    to_published=longformer_weights.to_published,
    from_published=longformer_weights.from_published,
    some_logits=_longformer_logits,
    tied=(longformer_weights.DECODER, longformer_weights.BIAS),
)

FORMS: dict[tuple[str, str], PublishedForm] = {
    ("reformer", "causal"): _REFORMER,
    ("reformer", "masked"): dataclasses.replace(
        _REFORMER,
        auto_class="AutoModelForMaskedLM",
        model_class="ReformerForMaskedLM",
        pipeline="fill-mask",
        generates=False,
        keeps_logits=False,
    ),
    ("longformer", "masked"): _LONGFORMER,
}


def form_of(model_type: str, objective: str) -> PublishedForm:
    """The published form of an architecture trained with an objective.

    Raises:
        UserError: `transformers` has none.
    """
    if (model_type, objective) not in FORMS:
        choices = [f"{kind} trained with objective={name}" for kind, name in FORMS]
        given = f"{model_type} trained with objective={objective}"
        raise UserError(f"{given} has no published form; these have: {', '.join(choices)}")
    return FORMS[model_type, objective]


def read_published_config(folder: Path) -> dict[str, Any]:
    """Reads `config.json`.

    Raises:
        UserError: It is missing, or not a JSON object.
    """
    file = folder / CONFIG_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"from={folder} has no {CONFIG_FILE}: name a folder or a Hub repository that has "
            f"{CONFIG_FILE} and the weights of a published model"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content


def config_from_published(published: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Our config from the content of a `config.json`.

    Keys that the published model does not read are left out: old files carry the options of
    other architectures and of generation.

    Returns:
        The config and the keys that were left out.

    Raises:
        UserError: The architecture is not known here, or a value cannot work.
    """
    kinds = {model_type: form for (model_type, _), form in FORMS.items()}
    kind = published.get("model_type")
    if kind not in kinds:
        raise unknown_choice("model_type", kind, kinds)
    form = kinds[kind]
    known = {field.name for field in dataclasses.fields(form.config_class)} | form.ignored_keys
    read = {key: value for key, value in published.items() if key in known}
    return checked_config(form.config_class, read), sorted(set(published) - known)


def checked_config(config_class: Any, values: Mapping[str, Any]) -> Any:
    """A config of ours from values that somebody else wrote.

    Raises:
        UserError: A value cannot work.
    """
    try:
        return config_class.from_dict(values)
    except UserError as error:
        raise UserError(f"{CONFIG_FILE}: {error}") from None
    except (TypeError, AttributeError) as error:
        raise UserError(f"{CONFIG_FILE} has a value of the wrong type: {error}") from None


def objective_of(config: Any) -> str:
    """The objective that a published model was made for."""
    return "causal" if config.is_decoder else "masked"
