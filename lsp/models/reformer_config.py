"""Configuration of the Reformer (2001.04451), under the names of the published `config.json`.

This file imports no torch, so that the command line can show the options without it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt, lcm, prod
from typing import Any

from lsp.core.errors import require, unknown_choice
from lsp.core.objectives import NEXT_TOKEN
from lsp.models import activations
from lsp.models.checks import check_at_least, check_dropout, check_token_ids
from lsp.models.published import BOOKKEEPING, known_values
from lsp.models.shares import check_degree
from lsp.models.vocabulary import settle_vocabulary

MODEL_TYPE = "reformer"
ATTENTION_KINDS = ("local", "lsh")
RESIDUALS = ("reversible", "recomputed", "stored")
# fmt: off
# Leftovers of the first releases of `transformers` say nothing about this model.
IGNORED_KEYS = BOOKKEEPING | {
    "num_hidden_layers", "intermediate_size", "type_vocab_size", "output_past",
    "sinusoidal_pos_embds", "num_chunks_before", "num_chunks_after", "sep_token_id",
}
# fmt: on


@dataclass
class ReformerConfig:
    """Options of the published model, with its names and its defaults.

    Their meaning is that of the published documentation. `num_buckets` is a number, its factors,
    or None for a choice made from the sequence length; `eos_token_id` a number, several, or None.
    """

    attention_head_size: int = 64
    attn_layers: list[str] = field(
        default_factory=lambda: ["local", "lsh", "local", "lsh", "local", "lsh"]
    )
    axial_norm_std: float = 1.0
    axial_pos_embds: bool = True
    axial_pos_shape: list[int] = field(default_factory=lambda: [64, 64])
    axial_pos_embds_dim: list[int] = field(default_factory=lambda: [64, 192])
    chunk_size_feed_forward: int = 0
    chunk_size_lm_head: int = 0
    eos_token_id: Any = 2
    feed_forward_size: int = 512
    hash_seed: int | None = None
    hidden_act: str = "relu"
    hidden_dropout_prob: float = 0.05
    hidden_size: int = 256
    initializer_range: float = 0.02
    is_decoder: bool = False
    layer_norm_eps: float = 1e-12
    local_num_chunks_before: int = 1
    local_num_chunks_after: int = 0
    local_attention_probs_dropout_prob: float = 0.05
    local_attn_chunk_length: int = 64
    lsh_attn_chunk_length: int = 64
    lsh_attention_probs_dropout_prob: float = 0.0
    lsh_num_chunks_before: int = 1
    lsh_num_chunks_after: int = 0
    max_position_embeddings: int = 4096
    num_attention_heads: int = 12
    num_buckets: Any = None
    num_hashes: int = 1
    vocab_size: int = 320
    tie_word_embeddings: bool = False
    use_cache: bool = True
    classifier_dropout: float | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        """Checks every field by itself; `validate` checks how they fit together."""
        check_at_least(
            self, 1,
            "attention_head_size", "feed_forward_size", "hidden_size", "local_attn_chunk_length",
            "lsh_attn_chunk_length", "max_position_embeddings", "num_attention_heads", "num_hashes",
            "vocab_size",
        )  # fmt: skip
        check_at_least(
            self, 0,
            "chunk_size_feed_forward", "chunk_size_lm_head", "local_num_chunks_before",
            "local_num_chunks_after", "lsh_num_chunks_before", "lsh_num_chunks_after",
        )  # fmt: skip
        check_dropout(
            self,
            "hidden_dropout_prob", "local_attention_probs_dropout_prob",
            "lsh_attention_probs_dropout_prob",
        )  # fmt: skip
        require(
            len(self.attn_layers) > 0, "attn_layers=[] has to name a layer, such as [local,lsh]"
        )
        for kind in self.attn_layers:
            if kind not in ATTENTION_KINDS:
                raise unknown_choice("attn_layers", kind, ATTENTION_KINDS)
        if self.hidden_act not in activations.NAMES:
            raise unknown_choice("hidden_act", self.hidden_act, activations.NAMES)
        require(
            not self.tie_word_embeddings,
            "tie_word_embeddings=true cannot work: the head reads both streams, twice hidden_size; "
            "use false",
        )
        self.num_buckets = _checked_buckets(self.num_buckets)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.attn_layers)

    @property
    def chunk_lengths(self) -> dict[str, int]:
        """Chunk length by the name of its option, of the kinds of attention in use."""
        names = {"local": "local_attn_chunk_length", "lsh": "lsh_attn_chunk_length"}
        return {names[kind]: getattr(self, names[kind]) for kind in sorted(set(self.attn_layers))}

    @property
    def seen_whole(self) -> int:
        """Length of the rows that every kind of attention in use sees whole."""
        return min(self.chunk_lengths.values())

    @property
    def length_multiple(self) -> int:
        """The number that every sequence length longer than one chunk must be a multiple of."""
        return lcm(*self.chunk_lengths.values())

    @property
    def max_positions(self) -> int:
        """How many positions have an embedding."""
        return prod(self.axial_pos_shape) if self.axial_pos_embds else self.max_position_embeddings

    def validate(self) -> None:
        """Checks that the fields fit together.

        Raises:
            UserError: They do not; the message names the keys and values that would.
        """
        if self.axial_pos_embds:
            dims, shape = list(self.axial_pos_embds_dim), list(self.axial_pos_shape)
            fit = _axial_dims(self.hidden_size)
            require(
                len(dims) == len(shape) and all(n >= 1 for n in dims + shape),
                f"axial_pos_shape={shape} and axial_pos_embds_dim={dims} need as many entries, "
                f"all positive",
            )
            require(
                sum(dims) == self.hidden_size,
                f"axial_pos_embds_dim={dims} adds up to {sum(dims)}, not to hidden_size="
                f"{self.hidden_size}: use for example {fit}",
            )
        if self.is_decoder:
            for kind in sorted(set(self.attn_layers)):
                after = getattr(self, f"{kind}_num_chunks_after")
                require(
                    after == 0,
                    f"{kind}_num_chunks_after={after} lets a causal model see later tokens: use 0",
                )
        check_token_ids(self, "pad_token_id", "bos_token_id")

    def check_length(self, sequence_length: int) -> None:
        """Refuses a training length that does not fit the chunks or the positions."""
        multiple = self.length_multiple
        below = max(sequence_length // multiple, 1) * multiple
        chunks = ", ".join(f"{key}={value}" for key, value in self.chunk_lengths.items())
        require(
            sequence_length % multiple == 0 or sequence_length <= min(self.chunk_lengths.values()),
            f"sequence_length={sequence_length} is not a multiple of {multiple} ({chunks}): "
            f"use {below} or {below + multiple}",
        )
        require(
            sequence_length <= self.max_positions,
            f"sequence_length={sequence_length} is longer than the {self.max_positions} positions "
            f"that have an embedding: shorten it, or raise "
            f"{'axial_pos_shape' if self.axial_pos_embds else 'max_position_embeddings'}",
        )

    def check_shares(self, sequence_length: int, degree: int) -> None:
        """Refuses a `parallelism.sequence` that the length or the heads cannot be shared by."""
        check_degree(lambda n: self._shares_problem(sequence_length, n), degree)

    def _shares_problem(self, sequence_length: int, degree: int) -> str | None:
        """Why rows cannot be shared by so many processes."""
        if sequence_length % degree:
            return f"sequence_length={sequence_length} is not a multiple of it"
        near = self.local_attention_is_near(sequence_length // degree)
        by_heads = [kind for kind in self.attn_layers if kind == "lsh" or not near]
        heads = self.num_attention_heads
        if by_heads and heads % degree:
            return (
                f"num_attention_heads={heads}, which {by_heads[0]} attention deals out, "
                "is not a multiple of it"
            )
        return None

    def local_attention_is_near(self, length: int) -> bool:
        """Whether local attention of `length` positions reaches no further than as many around."""
        chunk = self.local_attn_chunk_length
        around = max(self.local_num_chunks_before, self.local_num_chunks_after)
        return length % chunk == 0 and length >= chunk * around

    def settle_num_buckets(self, sequence_length: int) -> None:
        """Chooses `num_buckets` where it is unset and needed, and keeps it, as published."""
        # Imported here: the layer needs torch.
        from lsp.models.layers.lsh import automatic_num_buckets

        chunk = self.lsh_attn_chunk_length
        if "lsh" in self.attn_layers and self.num_buckets is None and sequence_length > chunk:
            self.num_buckets = automatic_num_buckets(
                sequence_length, chunk, self.max_position_embeddings
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as the published `config.json` has them."""
        return {
            "model_type": MODEL_TYPE,
            **dataclasses.asdict(self),
            "num_hidden_layers": self.num_hidden_layers,
        }

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> ReformerConfig:
        """Reads the content of a published `config.json`.

        Raises:
            UserError: A key is not known, or a value cannot work.
        """
        values = known_values(cls, published, MODEL_TYPE, IGNORED_KEYS)
        require(
            not published.get("sinusoidal_pos_embds", False),
            "sinusoidal_pos_embds=true is not supported: use axial_pos_embds=true or false",
        )
        config = cls(**values)
        config.validate()
        return config


def resolve(
    config: ReformerConfig,
    *,
    vocab_size: int,
    sequence_length: int,
    objective: str,
    special_ids: Mapping[str, int | None] | None = None,
) -> ReformerConfig:
    """Completes a config from what a run knows, and refuses what cannot work.

    Fields left at their default are chosen here: the axial shape (as square as the sequence
    length allows), the axial dimensions, the number of positions and of buckets. What the user
    chose is kept, or refused where it does not fit.

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
    config, default = copy.deepcopy(config), ReformerConfig()
    settle_vocabulary(config, default.vocab_size, vocab_size, special_ids or {})
    config.is_decoder = objective in NEXT_TOKEN
    if config.max_position_embeddings == default.max_position_embeddings:
        config.max_position_embeddings = sequence_length
    require(
        config.max_position_embeddings >= sequence_length,
        f"max_position_embeddings={config.max_position_embeddings} is below sequence_length="
        f"{sequence_length}: leave it out, or use {sequence_length} or more",
    )
    if config.axial_pos_embds:
        _resolve_axial(config, default, sequence_length)
    config.validate()
    config.check_length(sequence_length)
    # Also where one chunk holds a row and nothing is hashed yet: a reader may go on further.
    config.settle_num_buckets(max(sequence_length, config.lsh_attn_chunk_length + 1))
    return config


def _resolve_axial(config: ReformerConfig, default: ReformerConfig, sequence_length: int) -> None:
    """Chooses the axial shape and dimensions where they are at their default."""
    shape = list(config.axial_pos_shape)
    if not shape or (shape == default.axial_pos_shape and prod(shape) != sequence_length):
        shape = config.axial_pos_shape = _axial_shape(sequence_length)
    require(
        prod(shape) == sequence_length,
        f"axial_pos_shape={shape} has {prod(shape)} positions, not sequence_length="
        f"{sequence_length}: use {_axial_shape(sequence_length)}, sequence_length={prod(shape)}, "
        f"or axial_pos_embds=false",
    )
    dims = list(config.axial_pos_embds_dim)
    untouched = dims == default.axial_pos_embds_dim and sum(dims) != config.hidden_size
    if not dims or untouched:
        config.axial_pos_embds_dim = _axial_dims(config.hidden_size)


def _axial_shape(sequence_length: int) -> list[int]:
    """The two factors of a length that are closest to its square root, smaller first."""
    rows = next(n for n in range(isqrt(sequence_length), 0, -1) if sequence_length % n == 0)
    return [rows, sequence_length // rows]


def _axial_dims(hidden_size: int) -> list[int]:
    """A quarter for the slow axis and the rest for the fast one, as the published default has."""
    return [hidden_size // 4, hidden_size - hidden_size // 4]


def _checked_buckets(value: Any) -> Any:
    """`num_buckets` as None, an even number, or a list of even numbers."""
    if value is None:
        return None
    factors = [value] if isinstance(value, int) else value
    good = not isinstance(value, bool | str) and not isinstance(factors, float)
    good = good and all(isinstance(n, int) and n >= 2 and n % 2 == 0 for n in factors)
    require(
        good and len(factors) > 0,
        f"num_buckets={value} has to be an even number such as 64, even factors such as [16,32], "
        f"or null to choose from the sequence length",
    )
    return value if isinstance(value, int) else [int(n) for n in factors]
