"""Configuration of NEZHA (1909.00204), under the names of the published `config.json`.

This file imports no torch, so that the command line can show the options without it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lsp.core.errors import require, unknown_choice
from lsp.core.objectives import NEXT_TOKEN, PAIRS
from lsp.models import activations
from lsp.models.checks import check_at_least, check_dropout, check_token_ids
from lsp.models.published import BOOKKEEPING, known_values
from lsp.models.shares import check_degree
from lsp.models.vocabulary import settle_vocabulary

MODEL_TYPE = "nezha"
OBJECTIVES = ("next_sentence", "masked", "sentence_order", *NEXT_TOKEN)
"""What it can be trained with, that of its paper first."""
RESIDUALS = ("recomputed", "stored")
"""What `memory.residual` can be, the leanest first: its norms come after the sums."""
PAIRS_CLASS = "NezhaForPreTraining"
"""The published class whose weights tell which of two texts follows the other."""
# Keys of published files that say nothing about this model.
IGNORED_KEYS = BOOKKEEPING | {
    "add_cross_attention", "chunk_size_feed_forward", "directionality", "embedding_size",
    "gradient_checkpointing", "pooler_fc_size", "pooler_num_attention_heads",
    "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "sep_token_id", "use_cache",
    "use_relative_position",
}  # fmt: skip


@dataclass
class NezhaConfig:
    """Options of the published model, with its names and its defaults.

    What is not explained here means what the published documentation says.

    Attributes:
        max_relative_position: Distance from which on positions are not told apart (section 2.2).
        max_position_embeddings: Longest row; nothing is learnt of a position, so raising it costs
            nothing.
        is_decoder: Whether a token sees only those before it.
        sentence_pairs: Whether it tells which of two texts follows the other: `objective=`
            `next_sentence` or `sentence_order`; set by the run.
        classifier_dropout: Of heads for other tasks; null for `hidden_dropout_prob`.
    """

    max_relative_position: int = 64
    max_position_embeddings: int = 512
    is_decoder: bool = False
    sentence_pairs: bool = False
    vocab_size: int = 21128
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = 0.1
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: Any = 3

    def __post_init__(self) -> None:
        """Checks every field by itself; `validate` checks how they fit together."""
        check_at_least(
            self, 1,
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "max_relative_position",
            "type_vocab_size",
        )  # fmt: skip
        check_dropout(self, "hidden_dropout_prob", "attention_probs_dropout_prob")
        if self.classifier_dropout is not None:
            check_dropout(self, "classifier_dropout")
        if self.hidden_act not in activations.NAMES:
            raise unknown_choice("hidden_act", self.hidden_act, activations.NAMES)

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_positions(self) -> int:
        """Length of the longest row."""
        return self.max_position_embeddings

    @property
    def seen_whole(self) -> int:
        """Length of the rows that every token sees whole."""
        return self.max_position_embeddings

    def validate(self) -> None:
        """Checks that the fields fit together.

        Raises:
            UserError: They do not; the message names the keys and values that would.
        """
        heads, width = self.num_attention_heads, self.hidden_size
        step = 2 * heads  # a sine and a cosine for each pair of numbers of a head
        below = max(width // step, 1) * step
        require(
            width % step == 0,
            f"hidden_size={width} has to be a multiple of 2 * num_attention_heads={heads}: use "
            f"{below} or {below + step}",
        )
        require(
            not (self.is_decoder and self.sentence_pairs),
            "sentence_pairs=true needs tokens that see both sides: use is_decoder=false",
        )
        require(
            not self.sentence_pairs or self.type_vocab_size >= 2,
            f"type_vocab_size={self.type_vocab_size} cannot tell two texts apart: use 2",
        )
        check_token_ids(self, "pad_token_id", "bos_token_id")

    def check_length(self, sequence_length: int) -> None:
        """Refuses a length that the config does not allow."""
        require(
            sequence_length <= self.max_position_embeddings,
            f"sequence_length={sequence_length} is longer than max_position_embeddings="
            f"{self.max_position_embeddings}: shorten it, or raise that",
        )

    def check_shares(self, sequence_length: int, degree: int) -> None:
        """Refuses a `parallelism.sequence` that the length or the heads cannot be shared by."""
        check_degree(lambda n: self._shares_problem(sequence_length, n), degree)

    def _shares_problem(self, sequence_length: int, degree: int) -> str | None:
        """Why rows cannot be shared by so many processes."""
        if self.sentence_pairs:
            return "objective=next_sentence and sentence_order look at whole rows"
        if sequence_length % degree:
            return f"sequence_length={sequence_length} is not a multiple of it"
        if self.num_attention_heads % degree:
            return (
                f"num_attention_heads={self.num_attention_heads}, which attention deals out, "
                "is not a multiple of it"
            )
        return None

    def to_dict(self) -> dict[str, Any]:
        """The fields as the published `config.json` has them, and ours beside them."""
        return {"model_type": MODEL_TYPE, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> NezhaConfig:
        """Reads the content of a published `config.json`.

        Raises:
            UserError: A key is not known, or a value cannot work.
        """
        values = known_values(cls, published, MODEL_TYPE, IGNORED_KEYS)
        values.setdefault("sentence_pairs", PAIRS_CLASS in (published.get("architectures") or ()))
        config = cls(**values)
        config.validate()
        return config


def resolve(
    config: NezhaConfig,
    *,
    vocab_size: int,
    sequence_length: int,
    objective: str,
    special_ids: Mapping[str, int | None] | None = None,
) -> NezhaConfig:
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
    config, default = copy.deepcopy(config), NezhaConfig()
    settle_vocabulary(config, default.vocab_size, vocab_size, special_ids or {})
    config.is_decoder = objective in NEXT_TOKEN
    config.sentence_pairs = objective in PAIRS
    if config.max_position_embeddings == default.max_position_embeddings:
        config.max_position_embeddings = sequence_length
    config.validate()
    config.check_length(sequence_length)
    return config
