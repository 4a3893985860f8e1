"""Configuration of an architecture of `transformers`; imports neither it nor torch.

There are three ways to say which: a `model_type` with `model_init_config`; the `name` of a
published model or of a folder with its config; and the same with its `weights`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lsp.core.errors import UserError, require, unknown_choice
from lsp.core.objectives import DECODER, NEXT_TOKEN
from lsp.models.hub import keys, lengths, published
from lsp.models.hub.table import ROWS, HubRow, row_of
from lsp.models.shares import check_degree

ATTENTIONS = ("auto", "lsp", "sdpa", "eager", "flex_attention", "flash_attention_2")
"""Values of `architecture.attention`."""
UNLIMITED = 2**31 - 1
UNKNOWN_VOCABULARY = 1024
"""Ids before there is a tokenizer; every one that is trained here has some special tokens."""


@dataclass
class HubConfig:
    """Which architecture, and with what settings.

    Attributes:
        model_type: Its published name, e.g. `llama` or `bert`; `lsp architectures` lists them.
        model_init_config: Keys of its published config. What is left out is as published, but for
            what follows from the run: vocabulary and special ids from the tokenizer, positions
            from `sequence_length`.
        name: A folder with a `config.json`, or the name of a published model, to have its config.
        weights: Whether to begin with its weights, too.
        generator: With objective=replaced_token, published keys of the generator that differ from
            those of the model, e.g. `num_hidden_layers`; left out, ELECTRA's has a quarter of the
            width, and DeBERTa's half of the layers.
        attention: How attention is computed: `lsp` (one document after another), `sdpa` or `eager`
            (under a mask of all scores), `flex_attention` or `flash_attention_2` (on CUDA); `auto`
            is the first that the architecture has.
        mix_documents: Whether documents in a row may see each other in an architecture that cannot
            keep them apart.
        objective: What the model is made for; set by the run.
        settled: The whole published config; set by the run.
    """

    model_type: str | None = None
    model_init_config: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    weights: bool = False
    generator: dict[str, Any] = field(default_factory=dict)
    attention: str = "auto"
    mix_documents: bool = False
    objective: str | None = None
    settled: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model_type is not None:
            row_of(self.model_type)
        if self.attention not in ATTENTIONS:
            raise unknown_choice("attention", self.attention, ATTENTIONS)
        require(
            self.name is None or bool(self.name.strip()),
            "name is empty: use a folder with a config.json, or the name of a published model",
        )
        require(
            not self.weights or self.name is not None,
            "weights=true needs the model that has them: add architecture.name=FOLDER_OR_NAME",
        )

    @property
    def type(self) -> str:
        """The published name of the architecture, which may have to be read from a file.

        Raises:
            UserError: None was chosen, or not that of the file.
        """
        found = None if self.name is None or self.settled else published.type_of(self.name)
        chosen = self.model_type or found
        if chosen is None:
            raise UserError(
                "architecture=hub needs architecture.model_type=…, one of "
                f"{', '.join(sorted(ROWS))}; or architecture.name=…, a published model"
            )
        require(
            found in (None, chosen, row_of(chosen).config),
            f"architecture.model_type={chosen}, but architecture.name={self.name} is a {found}: "
            f"use architecture.model_type={found}, or leave it out",
        )
        return chosen

    @property
    def row(self) -> HubRow:
        """What is known of the architecture.

        Raises:
            UserError: None was chosen.
        """
        return row_of(self.type)

    @property
    def given(self) -> dict[str, Any]:
        """The keys that are not left out: of the published model that is named, and the user's."""
        named = {} if self.name is None else published.settings(self.name)
        return named | self.model_init_config

    def value(self, key: str) -> Any:
        """What the published config has for a key, set or by default."""
        values = self.settled or self.given
        if key in values:
            return values[key]
        other = keys.config_class(self.type).attribute_map.get(key)
        if other is not None:
            return self.value(other)
        return getattr(keys.default_config(self.type), key, None)

    @property
    def vocab_size(self) -> int:
        """Ids that a text may have."""
        given = (self.settled or self.given).get("vocab_size")
        return UNKNOWN_VOCABULARY if given is None else int(given) - self.row.extra_ids

    @property
    def pad_token_id(self) -> int | None:
        """Id of padding."""
        found = self.settled.get("pad_token_id")
        return None if found is None else int(found)

    @property
    def eos_token_id(self) -> Any:
        """Id, or ids, of the end of a text."""
        return self.settled.get("eos_token_id")

    @property
    def num_attention_heads(self) -> int:
        """Heads of attention of a layer; 0 where there are none."""
        found = self.value("num_attention_heads")
        return found if isinstance(found, int) else 0

    @property
    def is_decoder(self) -> bool:
        """Whether a position predicts the next token."""
        return self.objective in NEXT_TOKEN

    @property
    def answers(self) -> bool:
        """Whether a decoder writes what it makes of a text that an encoder reads."""
        return self.objective in DECODER

    @property
    def first_position(self) -> int:
        """Row of the position table that belongs to the first token."""
        return (self.pad_token_id or 0) + 1 if self.row.first_position else 0

    @property
    def tables(self) -> dict[str, int]:
        """Positions of rows that there are tables for, by the key of their length."""
        row = self.row
        named = [key for key in (row.positions, row.decoder_positions) if key and row.table]
        found = {key: self.value(key) for key in named}
        less = self.first_position + row.spare_positions
        return {key: int(length) - less for key, length in found.items() if length is not None}

    @property
    def max_positions(self) -> int:
        """The longest row that has a position for every token."""
        return min(self.tables.values(), default=UNLIMITED)

    def check_length(self, sequence_length: int) -> None:
        """Refuses a length that the architecture cannot have.

        Raises:
            UserError: It cannot; the message names lengths that work.
        """
        lengths.check(self, sequence_length)

    def check_shares(self, sequence_length: int, degree: int) -> None:
        """Refuses a `parallelism.sequence` that the length or the heads cannot be shared by."""
        check_degree(lambda n: self._shares_problem(sequence_length, n), degree)

    def _shares_problem(self, sequence_length: int, degree: int) -> str | None:
        if not self.row.shares:
            return f"model_type={self.model_type} sees whole rows only"
        if sequence_length % degree:
            return f"sequence_length={sequence_length} is not a multiple of it"
        if self.objective not in (None, "masked", *NEXT_TOKEN):
            return f"objective={self.objective} needs whole rows"
        heads = self.num_attention_heads
        if heads % degree:
            return (
                f"num_attention_heads={heads}, which attention deals out, is not a multiple of it"
            )
        return None


def objectives(config: HubConfig) -> tuple[str, ...]:
    """What it can be trained with, the objective of its paper first."""
    return config.row.objectives


def segments(config: HubConfig) -> bool:
    """Whether documents in a row are kept apart."""
    return bool(config.row.segments)


def residuals(config: HubConfig) -> tuple[str, ...]:
    """What `memory.residual` can be, the leanest first."""
    return ("recomputed", "stored")


def length_multiple(config: HubConfig) -> int:
    """What lengths have to be a multiple of."""
    return lengths.multiple(config)


def resolve(
    config: HubConfig,
    *,
    vocab_size: int,
    sequence_length: int,
    objective: str,
    special_ids: Mapping[str, int | None] | None = None,
) -> HubConfig:
    """Completes a config from what a run knows, and refuses what cannot work.

    Args:
        config: What the user gave, or what this gave before; not modified.
        vocab_size: Number of ids of the tokenizer.
        sequence_length: Positions in a row.
        objective: What it is trained to predict.
        special_ids: The tokenizer's, by their roles (`pad`, `eos`, …).

    Raises:
        UserError: A key is not known, or a value cannot work; the message names what would.
    """
    from lsp.models.hub.settle import settle

    config = copy.deepcopy(config)
    if not config.settled:
        config = settle(config, vocab_size, sequence_length, objective, special_ids or {})
    require(
        config.vocab_size >= vocab_size,
        f"model_init_config.vocab_size={config.vocab_size} is smaller than the tokenizer's "
        f"{vocab_size}: leave it out, or use {vocab_size} or more",
    )
    config.check_length(sequence_length)
    _check_attention(config)
    return config


def _check_attention(config: HubConfig) -> None:
    name, row = config.attention, config.row
    possible: tuple[str, ...] = ("auto", "eager")
    if row.segments == "interface":
        possible = ATTENTIONS
    if config.value("sliding_window") is not None:  # which is not in the mask of all scores
        possible = tuple(other for other in possible if other != "eager")
    require(
        name in possible,
        f"attention={name} is not possible with model_type={config.model_type}: choose one of "
        f"{', '.join(possible)}",
    )
    require(
        not (config.mix_documents and row.segments),
        f"mix_documents=true is for architectures that cannot keep documents apart, and "
        f"model_type={config.model_type} can: leave it out",
    )
