"""Configuration of the Longformer (2004.05150), under the names of the published `config.json`.

This file imports no torch, so that the command line can show the options without it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import lcm
from typing import Any

from lsp.core.errors import require, unknown_choice
from lsp.core.objectives import NEXT_TOKEN
from lsp.models import activations
from lsp.models.checks import check_at_least, check_dropout, check_token_ids
from lsp.models.published import BOOKKEEPING, known_values
from lsp.models.shares import check_degree
from lsp.models.vocabulary import settle_vocabulary

MODEL_TYPE = "longformer"
RESIDUALS = {
    # Its norms come after the sums, so a layer's input cannot be computed back from its output.
    "sequential": ("recomputed", "stored"),
    "reversible": ("reversible", "recomputed", "stored"),
}
"""What `memory.residual` can be under each `architecture.residual`, the leanest first."""
# Keys of published files that say nothing about this model: there is one way to compute it.
IGNORED_KEYS = BOOKKEEPING | {
    "attention_mode", "chunk_size_feed_forward", "gradient_checkpointing", "ignore_attention_mask",
    "onnx_export", "position_embedding_type", "use_cache", "classifier_dropout",
}  # fmt: skip


@dataclass
class LongformerConfig:
    """Options of the published model, with its names and its defaults, and some of the paper's.

    What is not explained here means what the published documentation says.

    Attributes:
        attention_window: Positions that a query sees beside its own, half of them before and half
            after it, or all of them before it where `is_decoder`; a number, or one per layer.
        attention_dilation: Gap between the positions of a window (section 3.1), for each layer a
            number, or one for each of its heads; empty for none.
        global_tokens: How many tokens at the beginning of each document see all of it and are seen
            by all of it in training.
        is_decoder: Whether a token sees only those before it (section 4).
        residual: `sequential`, as published, or `reversible`: two streams that attention and
            feed-forward add to in turns (RevNet, 1707.04585; Reformer, 2001.04451, section 3), each
            behind a norm. That is another function, with weights of its own, whose layers need no
            memory in training.
    """

    attention_window: Any = 512
    attention_dilation: list[Any] = field(default_factory=list)
    global_tokens: int = 0
    is_decoder: bool = False
    residual: str = "sequential"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True
    sep_token_id: int | None = 2
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: Any = 2

    def __post_init__(self) -> None:
        """Checks every field by itself; `validate` checks how they fit together."""
        check_at_least(
            self, 1,
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "type_vocab_size",
        )  # fmt: skip
        check_dropout(self, "hidden_dropout_prob", "attention_probs_dropout_prob")
        check_at_least(self, 0, "global_tokens")
        if self.hidden_act not in activations.NAMES:
            raise unknown_choice("hidden_act", self.hidden_act, activations.NAMES)
        if self.residual not in RESIDUALS:
            raise unknown_choice("residual", self.residual, RESIDUALS)

    @property
    def reversible(self) -> bool:
        """Whether it has two streams."""
        return self.residual == "reversible"

    @property
    def windows(self) -> list[int]:
        """The window of each layer."""
        given = self.attention_window
        return [given] * self.num_hidden_layers if isinstance(given, int) else list(given)

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def dilations(self) -> list[list[int]]:
        """The dilation of each head of each layer."""
        given = list(self.attention_dilation) or [1] * self.num_hidden_layers
        heads = self.num_attention_heads
        return [[one] * heads if isinstance(one, int) else list(one) for one in given]

    @property
    def seen_whole(self) -> int:
        """Length of the rows that every window sees whole, without gaps."""
        return min(self.windows) // 2

    @property
    def length_multiple(self) -> int:
        """What sequence lengths have to be a multiple of: dilated windows take turns."""
        return lcm(*(gap for layer in self.dilations for gap in layer))

    @property
    def first_position(self) -> int:
        """Row of the position table that belongs to the first token, as in RoBERTa (1907.11692)."""
        return (self.pad_token_id or 0) + 1

    @property
    def max_positions(self) -> int:
        """How many positions have an embedding of their own."""
        return self.max_position_embeddings - self.first_position

    def validate(self) -> None:
        """Checks that the fields fit together.

        Raises:
            UserError: They do not; the message names the keys and values that would.
        """
        layers, heads = self.num_hidden_layers, self.num_attention_heads
        require(
            self.hidden_size % heads == 0,
            f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={heads}: "
            f"use {heads * max(1, self.hidden_size // heads)} or "
            f"{heads * (self.hidden_size // heads + 1)}",
        )
        windows = self.windows
        require(
            len(windows) == layers and all(w >= 2 and w % 2 == 0 for w in windows),
            f"attention_window={self.attention_window} has to be an even number from 2 on, or "
            f"num_hidden_layers={layers} of them",
        )
        gaps = self.dilations
        require(
            len(gaps) == layers and all(len(g) == heads and min(g) >= 1 for g in gaps),
            f"attention_dilation={self.attention_dilation} has to have num_hidden_layers={layers} "
            f"entries, each a number from 1 on or num_attention_heads={heads} of them",
        )
        require(
            not (self.is_decoder and self.global_tokens),
            f"global_tokens={self.global_tokens} lets a causal model see later tokens: use 0",
        )
        require(
            self.length_multiple == 1 or self.global_tokens == 0,
            f"global_tokens={self.global_tokens} and attention_dilation="
            f"{self.attention_dilation} cannot both be used: leave one out",
        )
        check_token_ids(self, "pad_token_id", "bos_token_id", "sep_token_id")

    def check_length(self, sequence_length: int) -> None:
        """Refuses a training length that does not fit the dilations or the positions."""
        multiple = self.length_multiple
        below = max(sequence_length // multiple, 1) * multiple
        require(
            sequence_length % multiple == 0,
            f"sequence_length={sequence_length} is not a multiple of {multiple} "
            f"(attention_dilation): use {below} or {below + multiple}",
        )
        self.check_positions(sequence_length)

    def check_positions(self, sequence_length: int) -> None:
        """Refuses a length that not all have a position for."""
        require(
            sequence_length <= self.max_positions,
            f"sequence_length={sequence_length} is longer than the {self.max_positions} positions "
            f"that have an embedding (max_position_embeddings={self.max_position_embeddings}, of "
            f"which the first {self.first_position} are not used): shorten it, or raise that",
        )

    def check_shares(self, sequence_length: int, degree: int) -> None:
        """Refuses a `parallelism.sequence` that the length or the heads cannot be shared by."""
        check_degree(lambda n: self._shares_problem(sequence_length, n), degree)

    def _shares_problem(self, sequence_length: int, degree: int) -> str | None:
        """Why rows cannot be shared by so many processes."""
        if sequence_length % degree:
            return f"sequence_length={sequence_length} is not a multiple of it"
        near = self.windows_are_near(sequence_length // degree)
        near = near and self.global_tokens == 0 and self.length_multiple == 1
        if not near and self.num_attention_heads % degree:
            return (
                f"num_attention_heads={self.num_attention_heads}, which attention deals out, "
                "is not a multiple of it"
            )
        return None

    def windows_are_near(self, length: int) -> bool:
        """Whether the windows of `length` positions reach no further than as many around.

        The windows are rounded up to whole chunks, of which the longest has 64 positions.
        """
        reach = max(self.windows) if self.is_decoder else max(self.windows) // 2
        return length % 64 == 0 and -(-reach // 64) * 64 <= length

    def to_dict(self) -> dict[str, Any]:
        """The fields as the published `config.json` has them, and ours beside them."""
        return {"model_type": MODEL_TYPE, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> LongformerConfig:
        """Reads the content of a published `config.json`.

        Raises:
            UserError: A key is not known, or a value cannot work.
        """
        config = cls(**known_values(cls, published, MODEL_TYPE, IGNORED_KEYS))
        config.validate()
        return config


def residuals(config: LongformerConfig) -> tuple[str, ...]:
    """What `memory.residual` can be, the leanest first."""
    return RESIDUALS[config.residual]


def resolve(
    config: LongformerConfig,
    *,
    vocab_size: int,
    sequence_length: int,
    objective: str,
    special_ids: Mapping[str, int | None] | None = None,
) -> LongformerConfig:
    """Completes a config from what a run knows, and refuses what cannot work.

    Args:
        config: What the user gave; not modified.
        vocab_size: Number of ids of the tokenizer.
        sequence_length: Positions in a row.
        objective: What it is trained to predict.
        special_ids: The tokenizer's, by their roles (`pad`, `eos`, …); what is missing leaves the
            config's.

    Raises:
        UserError: A value cannot work; the message names values that would.
    """
    config, default = copy.deepcopy(config), LongformerConfig()
    special_ids = dict(special_ids or {})
    special_ids.setdefault("sep", special_ids.get("eos"))
    settle_vocabulary(config, default.vocab_size, vocab_size, special_ids)
    config.is_decoder = objective in NEXT_TOKEN
    if config.max_position_embeddings == default.max_position_embeddings:
        config.max_position_embeddings = sequence_length + config.first_position
    config.validate()
    config.check_length(sequence_length)
    return config
