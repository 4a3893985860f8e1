"""Reading published `config.json` files into our dataclasses; needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from lsp.core.errors import UserError, require

# fmt: off
BOOKKEEPING = frozenset((
    "_name_or_path", "model_type", "architectures", "transformers_version", "dtype", "torch_dtype",
    "id2label", "label2id", "num_labels", "problem_type", "output_hidden_states",
    "output_attentions", "return_dict", "is_encoder_decoder", "task_specific_params",
    "cls_token_id", "mask_token_id", "decoder_start_token_id", "attn_implementation",
    "_attn_implementation_autoset", "auto_map",
))
"""Keys of published files that say nothing about a model: what `transformers` notes for itself."""
# fmt: on


def known_values(
    config_class: type, published: Mapping[str, Any], model_type: str, ignored: Iterable[str]
) -> dict[str, Any]:
    """What a published file says about the fields of our config.

    Args:
        config_class: A dataclass with the published names.
        published: Content of a `config.json`.
        model_type: What the file has to be of.
        ignored: Keys that are passed over, beside `BOOKKEEPING`.

    Raises:
        UserError: The file is of another model, or a key is not known.
    """
    names = {f.name for f in dataclasses.fields(config_class)}
    kind = published.get("model_type", model_type)
    require(kind == model_type, f"model_type={kind} is not {model_type}")
    values: dict[str, Any] = {}
    for key, value in published.items():
        if key in names:
            values[key] = list(value) if isinstance(value, tuple) else value
        elif key not in BOOKKEEPING and key not in ignored:
            near = get_close_matches(key, names, n=1)
            hint = f": did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{key} is not an option of {model_type}{hint}")
    return values
