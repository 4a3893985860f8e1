"""From what a user gives of a published config to the whole of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lsp.core.errors import UserError, require
from lsp.core.objectives import NEXT_TOKEN, PAIRS
from lsp.models.hub import keys
from lsp.models.hub.config import HubConfig
from lsp.models.hub.table import HubRow, row_of

ENDING, PAD = "_token_id", "pad_token_id"
TYPES, PAIR = "type_vocab_size", 2
ROLES = ("pad", "eos")
"""Roles whose id padding, and what has to have one, can have; the first that there is."""


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
    row, model_type = config.row, config.type
    given, typed = config.given, config.model_init_config
    keys.check_keys(model_type, typed)
    if objective not in row.objectives:
        raise UserError(
            f"objective={objective} is not possible with model_type={model_type}: choose one of "
            f"{', '.join(row.objectives)}"
        )
    values = dict(given)
    if not _has(model_type, given, "vocab_size"):
        values["vocab_size"] = vocab_size + row.extra_ids
    values.update(_special(model_type, special_ids, values))
    more = row.spare_positions + (values["pad_token_id"] + 1 if row.first_position else 0)
    for key in (row.positions, row.decoder_positions):
        if key and not _has(model_type, given, key):
            values[key] = sequence_length + more
    for key, value in (_switched(row, objective) | _lengths(model_type, sequence_length)).items():
        require(
            typed.get(key, value) == value,
            f"model_init_config.{key}={typed.get(key)} is not possible with objective={objective} "
            f"and sequence_length={sequence_length}: use {value}, or leave it out",
        )
        values[key] = value
    values |= {key: 0.0 for key in keys.known_keys(model_type) if _drops_layers(config, key)}
    if objective in PAIRS:
        values.update(_two_types(model_type, values))
    made = keys.make_config(model_type, values)
    config.model_type, config.objective = model_type, objective
    config.settled = keys.plain_values(made)
    return config


def _special(
    model_type: str, special_ids: Mapping[str, int | None], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Every special id that the config has a field for: the tokenizer's, the given or none."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(keys.config_class(model_type)):
        if not field.name.endswith(ENDING):
            continue
        token = special_ids.get(field.name.removesuffix(ENDING))
        own = given.get(field.name)
        if token is None and isinstance(own, int) and own < given.get("vocab_size", own + 1):
            token = own
        if token is None and (field.name == PAD or "None" not in str(field.type)):
            known = (special_ids.get(role) for role in ROLES)
            token = next((token for token in known if token is not None), 0)
        found[field.name] = token
    if PAD in row_of(model_type).settings:  # in the published code, whatever the config says
        found[PAD] = row_of(model_type).settings[PAD]
    if keys.START in keys.known_keys(model_type):
        start = special_ids.get("decoder_start", given.get(keys.START))
        found[keys.START] = found[PAD] if start is None else start
    return found


def _has(model_type: str, given: Mapping[str, Any], key: str) -> bool:
    """Whether a key is given, under any of its names."""
    names = keys.config_class(model_type).attribute_map
    return key in given or any(names.get(other) == key for other in given)


def _switched(row: HubRow, objective: str) -> dict[str, object]:
    """What makes the model see only what comes before, or both sides."""
    causal = objective in NEXT_TOKEN
    switch: dict[str, object] = {row.causal: causal} if row.causal not in ("", "always") else {}
    if row.causal == "attn_type":
        switch = {"attn_type": "uni" if causal else "bi"}
    return dict(row.settings) | switch | (dict(row.causal_settings) if causal else {})


def _lengths(model_type: str, sequence_length: int) -> dict[str, object]:
    """What has to be the length of a row."""
    return {"segment_means_seq_len": sequence_length} if model_type == "nystromformer" else {}


def _two_types(model_type: str, values: Mapping[str, Any]) -> dict[str, int]:
    """An embedding for each text of a pair."""
    default = getattr(keys.default_config(model_type), TYPES, PAIR)
    found = values.get(TYPES, max(default, PAIR))
    require(
        found >= PAIR,
        f"model_init_config.{TYPES}={found} has no embedding for the second text of a pair: use "
        f"{PAIR}, or leave it out",
    )
    return {TYPES: found} if TYPES in keys.known_keys(model_type) else {}


def _drops_layers(config: HubConfig, key: str) -> bool:
    """Whether a key leaves whole layers out at random.

    Their weights then have no gradient, and processes would wait for each other in vain.
    """
    if not key.endswith("layerdrop"):
        return False
    value = config.model_init_config.get(key, 0)
    require(
        value == 0,
        f"model_init_config.{key}={value} leaves layers out at random, for whose gradients other "
        "processes would wait: use 0, or leave it out",
    )
    return True
