"""Configuration of Mega (2209.10655), under the names of the published `config.json`.

This file imports no torch, so that the command line can show the options without it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lsp.core.errors import require, unknown_choice
from lsp.core.objectives import NEXT_TOKEN
from lsp.models.checks import check_at_least, check_dropout, check_token_ids
from lsp.models.published import BOOKKEEPING, known_values
from lsp.models.shares import check_degree
from lsp.models.vocabulary import settle_vocabulary

MODEL_TYPE = "mega"
# Its gates are not added to the stream, so no input can be computed back from an output.
RESIDUALS = ("recomputed", "stored")
# Keys of published files that say nothing about a language model of this kind.
IGNORED_KEYS = BOOKKEEPING | {"use_cache", "num_attention_heads", "classifier_dropout"}

ACTIVATIONS = ("silu", "relu", "linear", "gelu", "gelu_accurate")
ATTENTION_ACTIVATIONS = ("softmax", "laplace", "relu2")
NORMALIZATIONS = ("scalenorm", "layernorm", "rmsnorm")
BATCH_NORMALIZATIONS = ("batchnorm", "syncbatchnorm")
POSITIONAL_BIASES = ("rotary", "simple")


@dataclass
class MegaConfig:
    """Options of the published model, with its names and its defaults.

    What is not explained here means what the published documentation says.

    Attributes:
        intermediate_size: Width of the values that attention mixes.
        ema_projection_size: Moving averages of each feature (section 3.1: h).
        bidirectional: Whether averages run both ways.
        shared_representation_size: Width of queries and keys (section 3.2: z).
        use_chunking: Whether attention stays within chunks (section 3.5), of `chunk_size` positions
            counted from the beginning of each document.
        truncation: How many positions an average reaches back; null for all.
        norm_affine: Whether norms have weights.
        attention_activation: What makes weights of scores: `softmax`, `relu2` (2109.08668), or
            `laplace` (section 3.4).
        use_feature_dropout: Whether `dropout_prob`, `hidden_dropout_prob` and
            `nffn_activation_dropout_prob` drop features of whole rows, and not single numbers.
        use_normalized_ffn: Whether layers have a feed-forward.
        max_positions: Longest row of a `simple` bias without chunks; a `rotary` one has no limit of
            its own, but texts are generated and measured up to here.
        is_decoder: Whether a token sees only those before it.
        relative_positional_bias: What attention knows of distances: `rotary`, from two vectors, or
            `simple`, a number for each.
        add_lm_hidden_dense_layer: Whether the head has a layer before the vocabulary.
    """

    vocab_size: int = 30522
    hidden_size: int = 128
    num_hidden_layers: int = 4
    intermediate_size: int = 256
    ema_projection_size: int = 16
    bidirectional: bool = True
    shared_representation_size: int = 64
    use_chunking: bool = False
    chunk_size: int = -1
    truncation: int | None = None
    normalize_before_mega: bool = True
    normalization_type: str = "scalenorm"
    norm_affine: bool = True
    activation: str = "silu"
    attention_activation: str = "softmax"
    dropout_prob: float = 0.1
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    use_feature_dropout: bool = False
    use_normalized_ffn: bool = True
    nffn_hidden_size: int = 256
    normalize_before_ffn: bool = True
    nffn_activation_dropout_prob: float = 0.1
    max_positions: int = 2048
    add_token_type_embeddings: bool = False
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    ema_delta_alpha_range: float = 0.2
    ema_beta_range: float = 0.02
    ema_gamma_omega_range: float = 1.0
    relative_positional_bias: str = "rotary"
    is_decoder: bool = False
    add_lm_hidden_dense_layer: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: Any = 2

    def __post_init__(self) -> None:
        """Checks every field by itself; `validate` checks how they fit together."""
        check_at_least(
            self, 1,
            "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size",
            "ema_projection_size", "shared_representation_size", "nffn_hidden_size",
            "max_positions", "type_vocab_size",
        )  # fmt: skip
        check_dropout(
            self,
            "dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob",
            "nffn_activation_dropout_prob",
        )  # fmt: skip
        require(
            self.truncation is None or self.truncation >= 1,
            f"truncation={self.truncation} has to be 1 or more, or null for none",
        )
        kind = self.normalization_type
        require(
            kind not in BATCH_NORMALIZATIONS,
            f"normalization_type={kind} takes its statistics over all rows, documents and padding "
            "of a micro-batch, so what one document gives would depend on the others: use "
            f"{', '.join(NORMALIZATIONS[:-1])} or {NORMALIZATIONS[-1]}",
        )
        for key, choices in (
            ("normalization_type", NORMALIZATIONS),
            ("activation", ACTIVATIONS),
            ("attention_activation", ATTENTION_ACTIVATIONS),
            ("relative_positional_bias", POSITIONAL_BIASES),
        ):
            if getattr(self, key) not in choices:
                raise unknown_choice(key, getattr(self, key), choices)

    @property
    def length_multiple(self) -> int:
        """What sequence lengths have to be a multiple of."""
        return self.chunk_size if self.use_chunking else 1

    @property
    def seen_whole(self) -> int:
        """Length of the rows that attention sees whole."""
        return self.chunk_size if self.use_chunking else self.max_positions

    @property
    def known_distance(self) -> int:
        """The number of a `simple` bias that is of distance 0, in the middle of those used."""
        # As in the published model, where a chunk's length counts even without chunks.
        return (self.chunk_size if self.chunk_size > 0 else self.max_positions) - 1

    def validate(self) -> None:
        """Checks that the fields fit together.

        Raises:
            UserError: They do not; the message names the keys and values that would.
        """
        require(
            not self.use_chunking or self.chunk_size >= 1,
            f"use_chunking=true needs a chunk_size, and chunk_size={self.chunk_size}: use "
            "chunk_size=128, or use_chunking=false",
        )
        require(
            not (self.is_decoder and self.bidirectional),
            "bidirectional=true averages over later tokens, which is_decoder=true must not see: "
            "use bidirectional=false",
        )
        size = self.shared_representation_size
        require(
            self.relative_positional_bias != "rotary" or size % 2 == 0,
            f"shared_representation_size={size} is odd, and relative_positional_bias=rotary turns "
            f"pairs of numbers: use {size + 1}, or relative_positional_bias=simple",
        )
        require(
            self.relative_positional_bias != "simple" or self.known_distance < self.max_positions,
            f"chunk_size={self.chunk_size} is more than the max_positions={self.max_positions} "
            "that relative_positional_bias=simple has numbers for: raise that",
        )
        check_token_ids(self, "pad_token_id", "bos_token_id")

    def check_length(self, sequence_length: int) -> None:
        """Refuses a training length that the chunks do not divide, or the bias does not reach."""
        multiple = self.length_multiple
        below = max(sequence_length // multiple, 1) * multiple
        require(
            sequence_length % multiple == 0,
            f"sequence_length={sequence_length} is not a multiple of chunk_size={multiple}: use "
            f"{below} or {below + multiple}, or a chunk_size that divides it",
        )
        self.check_positions(sequence_length)

    def check_positions(self, sequence_length: int) -> None:
        """Refuses a length with distances that a `simple` bias has no numbers for."""
        if self.relative_positional_bias == "rotary" or self.use_chunking:
            return
        key = "chunk_size" if self.chunk_size > 0 else "max_positions"
        require(
            sequence_length <= self.known_distance + 1,
            f"sequence_length={sequence_length} is longer than {key}={getattr(self, key)}, which "
            "is as far as relative_positional_bias=simple reaches: shorten it, or raise that",
        )

    def check_shares(self, sequence_length: int, degree: int) -> None:
        """Refuses to share the positions of a row: there is one head, which sees all of them."""
        problem = (
            "a Mega has one head of attention, which cannot be dealt out, and averages that run "
            "through whole rows"
        )
        check_degree(lambda _: problem, degree)

    def to_dict(self) -> dict[str, Any]:
        """The fields as the published `config.json` has them."""
        return {"model_type": MODEL_TYPE, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> MegaConfig:
        """Reads the content of a published `config.json`.

        Raises:
            UserError: A key is not known, or a value cannot work.
        """
        values = dict(published)
        require(
            not values.pop("add_cross_attention", False),
            "add_cross_attention=true is for the decoder of an encoder's text, which is not here",
        )
        config = cls(**known_values(cls, values, MODEL_TYPE, IGNORED_KEYS))
        config.validate()
        return config


def resolve(
    config: MegaConfig,
    *,
    vocab_size: int,
    sequence_length: int,
    objective: str,
    special_ids: Mapping[str, int | None] | None = None,
) -> MegaConfig:
    """Completes a config from what a run knows, and refuses what cannot work.

    Args:
        config: What the user gave; not modified.
        vocab_size: Number of ids of the tokenizer.
        sequence_length: Positions in a row.
        objective: What it is trained to predict: whether tokens see, and averages run, both ways.
        special_ids: The tokenizer's, by their roles (`pad`, `eos`, …); what is missing leaves the
            config's.

    Raises:
        UserError: A value cannot work; the message names values that would.
    """
    config, default = copy.deepcopy(config), MegaConfig()
    settle_vocabulary(config, default.vocab_size, vocab_size, special_ids or {})
    config.is_decoder = objective in NEXT_TOKEN
    config.bidirectional = config.bidirectional and not config.is_decoder
    if config.max_positions == default.max_positions:
        config.max_positions = max(sequence_length, config.chunk_size)
    if config.relative_positional_bias == "rotary":  # whose weights do not know how far it goes
        config.max_positions = max(sequence_length, config.max_positions)
    config.validate()
    config.check_length(sequence_length)
    return config
