"""One architecture of `lsp architectures`: its keys, and a command that trains it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lsp.models.catalog import Entry
from lsp.models.hub.table import row_of
from lsp.run.config import ARCHITECTURES

FROM_THE_RUN = ("vocab_size",)
DEPTHS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers",
)  # fmt: skip
"""What published configs call the number of layers."""


@dataclass(frozen=True)
class Description:
    """What can be set of an architecture.

    Attributes:
        title: What it is, in words.
        node: Where its keys belong.
        keys: Their defaults as published, and a remark, by name.
        command: Trains a small one.
    """

    title: str
    node: str
    keys: dict[str, tuple[Any, str]]
    command: str


def describe(entry: Entry) -> Description:
    """What can be set of an architecture."""
    return _native(entry) if entry.native else _hub(entry)


def _native(entry: Entry) -> Description:
    config = ARCHITECTURES[entry.name]
    keys = {field.name: (_default(field), "") for field in dataclasses.fields(config)}
    return Description(
        title="written here",
        node="architecture",
        keys=keys,
        command=f"lsp train run_name={entry.name} {entry.selected} objective={entry.objectives[0]}",
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _hub(entry: Entry) -> Description:
    from lsp.models.hub.keys import default_config, known_keys

    row, default = row_of(entry.name), default_config(entry.name)
    known = known_keys(entry.name)
    named = {field.name for field in dataclasses.fields(default)} & known
    other: dict[str, list[str]] = {}
    for alias, name in type(default).attribute_map.items():
        other.setdefault(name, []).append(alias)
    keys = {}
    for name in (field.name for field in dataclasses.fields(default) if field.name in named):
        says = [f"also {alias}" for alias in other.get(name, []) if alias in known]
        if name in row.settings:
            says.insert(0, f"always {row.settings[name]} here")
        elif name in FROM_THE_RUN or name.endswith("_token_id"):
            says.insert(0, "from the tokenizer")
        elif name == row.positions:
            says.insert(0, "from sequence_length")
        elif name == row.causal:
            says.insert(0, "from the objective")
        keys[name] = (getattr(default, name), ", ".join(says))
    heads = ", ".join(dict.fromkeys(row.heads.values()))
    return Description(
        title=f"{heads} of transformers",
        node="architecture.model_init_config",
        keys=keys,
        command=" ".join(_command(entry, named)),
    )


def _command(entry: Entry, named: set[str]) -> list[str]:
    words = ["lsp train", f"run_name={entry.name}", entry.selected]
    # Pairs of texts are nothing that this machine has.
    objective = next(name for name in entry.objectives if name != "translation")
    words += [f"objective={objective}"]
    words += [f"+architecture.model_init_config.{key}=2" for key in DEPTHS if key in named]
    if row_of(entry.name).start:
        words += [f"objective.decoder_start={row_of(entry.name).start}"]
    if not entry.documents:
        words += ["packing=one_per_row"]
    if row_of(entry.name).leak:
        words += ["verify.at_start=false"]
    return words
