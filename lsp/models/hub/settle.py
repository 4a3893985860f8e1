"""From what a user gives of a published config to the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsp.core.errors import UserError, require
from lsp.core.objectives import NEXT_TOKEN
from lsp.models.hub import keys
from lsp.models.hub.config import HubConfig

PAD = ("pad", "eos")
"""Roles whose id padding can have, the first that there is."""


def settle(
    config: HubConfig,
    vocab_size: int,
    sequence_length: int,
    objective: str,
    special_ids: Mapping[str, int | None],
) -> HubConfig:
    """Fills in, in place, what follows from the run.

    Args:
        config: Not settled yet.
        vocab_size: Number of ids of the tokenizer.
        sequence_length: Positions in a row.
        objective: What it is trained to predict.
        special_ids: The tokenizer's, by their roles.

    Raises:
        UserError: A key is not known, or a value cannot work.
    """
    given = dict(config.model_init_config)
    if config.name is not None:
        published = read_published(config)
        keys.check_keys(_type(config), given)
        given = published | given
    else:
        keys.check_keys(_type(config), given)
    model_type, row = _type(config), config.row
    names = keys.known_keys(model_type)
    if objective not in row.objectives:
        raise UserError(
            f"objective={objective} is not possible with model_type={model_type}: choose one of "
            f"{', '.join(row.objectives)}"
        )
    values = dict(given)
    values.setdefault("vocab_size", vocab_size)
    values.update(_special(model_type, special_ids, values))
    if row.positions and row.positions in names:
        first = values["pad_token_id"] + 1 if row.first_position == "pad" else 0
        values.setdefault(row.positions, sequence_length + first)
    values.update(_causal(row.causal, objective, model_type))
    values.update(_fixed(config, row.settings))
    made = keys.make_config(model_type, values)
    config.objective = objective
    config.settled = keys.plain_values(made)
    return config


def _type(config: HubConfig) -> str:
    _ = config.row
    assert config.model_type is not None
    return config.model_type


def _special(
    model_type: str, special_ids: Mapping[str, int | None], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Every special id that the config has a field for: the tokenizer's, the given or none."""
    default = keys.default_config(model_type)
    names = {name for name in vars(default) if name.endswith("_token_id")} | {"pad_token_id"}
    found: dict[str, Any] = {}
    for name in names:
        token = special_ids.get(name.removesuffix("_token_id"))
        own = given.get(name)
        if token is None and isinstance(own, int) and own < given["vocab_size"]:
            token = own
        found[name] = token
    if found["pad_token_id"] is None:
        known = (special_ids.get(role) for role in PAD)
        found["pad_token_id"] = next((token for token in known if token is not None), 0)
    return found


def _causal(switch: str, objective: str, model_type: str) -> dict[str, Any]:
    """What makes the model see only what comes before, or both sides."""
    causal = objective in NEXT_TOKEN
    if switch in ("", "always"):
        return {}
    if switch == "attn_type":
        return {"attn_type": "uni" if causal else "bi"}
    return {switch: causal}


def _fixed(config: HubConfig, settings: Mapping[str, object]) -> dict[str, Any]:
    for key, value in settings.items():
        given = config.model_init_config.get(key, value)
        require(
            given == value,
            f"model_init_config.{key}={given} is not possible here: use {value}, or leave it out",
        )
    return dict(settings)


def read_published(config: HubConfig) -> dict[str, Any]:
    """The config of a folder or of a published model; sets the model's type, in place.

    Raises:
        UserError: There is none, or it is of another type.
    """
    from transformers import PreTrainedConfig

    try:
        values, _ = PreTrainedConfig.get_config_dict(config.name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise UserError(f"name={config.name} has no config that can be read: {reason}") from error
    found = values.get("model_type")
    require(
        isinstance(found, str),
        f"name={config.name}: its config.json does not say which model_type it is of",
    )
    if config.model_type is None:
        config.model_type = found
    same = {config.model_type, config.row.config}
    require(
        found in same,
        f"model_type={config.model_type}, but name={config.name} is a {found}: use "
        f"architecture.model_type={found}, or leave it out",
    )
    return {key: value for key, value in values.items() if key not in keys.BOOKKEEPING}
