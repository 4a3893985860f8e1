"""What `transformers` has of each architecture, and reading what others wrote in that form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lsp.core.errors import UserError, unknown_choice
from lsp.hub import (
    hub_forms,
    longformer_forms,
    mega_forms,
    nezha_forms,
    reformer_forms,
    transformer_xl_forms,
)
from lsp.hub.form import PublishedForm
from lsp.models import registry

CONFIG_FILE = "config.json"

FORMS: tuple[PublishedForm, ...] = (
    *reformer_forms.FORMS,
    *longformer_forms.FORMS,
    *transformer_xl_forms.FORMS,
    *nezha_forms.FORMS,
    *mega_forms.FORMS,
)

_CHOICES: dict[str, Callable[[Any], PublishedForm]] = {
    "reformer": reformer_forms.form_of,
    "longformer": longformer_forms.form_of,
    "transformer_xl": transformer_xl_forms.form_of,
    "nezha": nezha_forms.form_of,
    "mega": mega_forms.form_of,
    "hub": hub_forms.form_of,
}


def form_of(config: Any) -> PublishedForm:
    """The published form of a model with this config of ours."""
    return _CHOICES[registry.name_of(config)](config)


def read_form(published: Mapping[str, Any]) -> PublishedForm:
    """A form that the content of a `config.json` is in.

    Raises:
        UserError: The architecture is not known here.
    """
    kinds = {form.model_type: form for form in FORMS}
    kind = published.get("model_type")
    if kind not in kinds:
        raise unknown_choice("model_type", kind, kinds)
    return kinds[kind]


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
    form = read_form(published)
    known = {field.name for field in dataclasses.fields(form.config_class)} | form.ignored_keys
    # What the form calls itself is not what the config class does.
    read = {key: value for key, value in published.items() if key in known - {"model_type"}}
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
    if config.is_decoder:
        return "causal"
    return "next_sentence" if getattr(config, "sentence_pairs", False) else "masked"
