"""The keys of a published config: which there are, and what they may be.

Config classes of `transformers` keep whatever they are given, and read some of it; so what nothing
reads has to be found here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from lsp.core.errors import UserError
from lsp.models.hub.table import row_of

KEY = "model_init_config"
START = "decoder_start_token_id"
"""What a decoder begins with: read of every encoder-decoder, also where it is no field."""
SHOWN = 3

# fmt: off
ROPE = frozenset((
    "rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base", "partial_rotary_factor",
    "rope_parameters",
))
"""Older names of rotary positions, which are read into `rope_parameters`."""

BOOKKEEPING = frozenset((
    "model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "id2label",
    "label2id", "problem_type", "_name_or_path", "output_hidden_states", "output_attentions",
    "return_dict", "is_encoder_decoder", "task_specific_params", "num_labels", "use_cache",
    "gradient_checkpointing", "attn_implementation", "_attn_implementation_autoset", "auto_map",
))
"""Keys that say nothing of what a model computes in training."""
# fmt: on


@cache
def config_class(model_type: str) -> Any:
    """The config class of `transformers` for one of our rows; its import takes a moment."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[row_of(model_type).config or model_type]


@cache
def default_config(model_type: str) -> Any:
    """The config that the class makes of nothing; not to be changed."""
    return config_class(model_type)()


def known_keys(model_type: str) -> frozenset[str]:
    """What `model_init_config` may name: fields, their other names, and older names."""
    published = config_class(model_type)
    fields = {field.name for field in dataclasses.fields(published)}
    names = fields | set(published.attribute_map)
    if row_of(model_type).kind == "encoder_decoder":
        names.add(START)
    if "rope_parameters" in fields:
        names |= ROPE
    return frozenset(names - BOOKKEEPING - set(row_of(model_type).ignored))


def check_keys(model_type: str, values: Mapping[str, Any]) -> None:
    """Refuses keys that nothing would read.

    Raises:
        UserError: There is one; the message has the nearest names.
    """
    known = known_keys(model_type)
    for key, value in values.items():
        if key in known:
            continue
        why = "changes nothing" if key in row_of(model_type).ignored else "is not known"
        near = get_close_matches(key, known, n=SHOWN)
        hint = f"did you mean {' or '.join(near)}?" if near else "leave it out"
        raise UserError(f"{KEY}.{key}={value} {why} with model_type={model_type}: {hint}")


def make_config(model_type: str, values: Mapping[str, Any]) -> Any:
    """A published config.

    Raises:
        UserError: A value is not of the right kind.
    """
    published = config_class(model_type)
    try:
        return published(**values)
    except Exception as error:  # each class has checks, and kinds of errors, of its own
        raise UserError(_in_a_line(model_type, values, error)) from error


def _in_a_line(model_type: str, values: Mapping[str, Any], error: Exception) -> str:
    message = " ".join(str(error).split())
    for key, value in values.items():
        if f"'{key}'" in message:
            reason = message.rpartition("TypeError: ")[2].rpartition("ValueError: ")[2]
            return f"{KEY}.{key}={value!r} cannot be used with model_type={model_type}: {reason}"
    return f"{KEY} cannot be used with model_type={model_type}: {message}"


def plain_values(config: Any) -> dict[str, Any]:
    """A published config as plain values that make the same one again."""
    values = config.to_dict()
    names = {field.name for field in dataclasses.fields(type(config))} | {START}
    return {
        key: _plain(value)
        for key, value in values.items()
        if key in names and key not in BOOKKEEPING and value not in ({},)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
