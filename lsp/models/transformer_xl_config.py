"""Configuration of Transformer-XL (1901.02860), under the names of the published `config.json`.

This file imports no torch, so that the command line can show the options without it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lsp.core.errors import require, unknown_choice
from lsp.core.objectives import NEXT_TOKEN
from lsp.models.checks import check_at_least, check_dropout, check_token_ids
from lsp.models.published import BOOKKEEPING, known_values
from lsp.models.shares import check_degree
from lsp.models.vocabulary import settle_vocabulary

MODEL_TYPE = "transfo-xl"
# Its layers do not come in pairs of streams, so no input can be computed back from an output.
RESIDUALS = ("recomputed", "stored")
# Keys of published files that say nothing about this model.
IGNORED_KEYS = BOOKKEEPING | {"tie_weight", "trainer_compatible", "use_cache"}

RELATIVE, LEARNED_RELATIVE, ABSOLUTE, LEARNED_ABSOLUTE = range(4)
INITS = ("normal", "uniform")
UNLIMITED = 2**31 - 1
"""Positions of a model that knows only distances."""
SMALLEST_CLUSTERED = 100_000
"""Vocabularies from here on are clustered where nobody says how."""
PUBLISHED_CLUSTERS = (20_000, 40_000, 200_000, 267_735)


@dataclass
class TransformerXLConfig:
    """Options of the published model, with its names and its defaults, and some beside them.

    What is not explained here means what the published documentation says.

    Attributes:
        cutoffs: Where clusters of the adaptive softmax begin (1609.04309), the likeliest tokens
            first; empty for one softmax over the vocabulary, or, in a run, for as many clusters as
            its vocabulary asks for.
        mem_len: Positions before a row that are remembered of each layer.
        same_length: Whether each token sees as many: the `mem_len` up to its own.
        clamp_len: Distances above it are like it; 0 or less for none.
        attn_type: 0 for relative positions (section 3.3), 1 for learned ones (Shaw et al.,
            1803.02155), 2 for sinusoids and 3 for learned vectors, which are added to the input of
            the first or of each layer (Vaswani et al., Al-Rfou et al.).
        sample_softmax: Tokens that the softmax is estimated with in training; 0 or less for all.
        tie_projs: Which clusters share their projection with the embedding; empty for what
            `proj_share_all_but_first` says.
        tgt_len: Length of the rows that learned positions (`attn_type` 1 and 3) are made for,
            beside `mem_len`; 0 takes the run's.
        memory_across_documents: Whether rows are one running text, as published: tokens see those
            of documents before theirs. Otherwise no document sees another, nor its memory.
        zero_memory: Whether a text is preceded by `mem_len` states of zeros, as in the published
            model; otherwise by nothing.
    """

    vocab_size: int = 267735
    cutoffs: list[int] = field(default_factory=lambda: [20000, 40000, 200000])
    d_model: int = 1024
    d_embed: int = 1024
    n_head: int = 16
    d_head: int = 64
    d_inner: int = 4096
    div_val: int = 4
    pre_lnorm: bool = False
    n_layer: int = 18
    mem_len: int = 1600
    clamp_len: int = 1000
    same_length: bool = True
    proj_share_all_but_first: bool = True
    attn_type: int = 0
    sample_softmax: int = -1
    adaptive: bool = True
    dropout: float = 0.1
    dropatt: float = 0.0
    untie_r: bool = True
    init: str = "normal"
    init_range: float = 0.01
    proj_init_std: float = 0.01
    init_std: float = 0.02
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    tie_projs: list[bool] = field(default_factory=list)
    tgt_len: int = 0
    memory_across_documents: bool = False
    zero_memory: bool = False
    eos_token_id: Any = 0
    pad_token_id: int | None = None
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        """Checks every field by itself; `validate` checks how they fit together."""
        check_at_least(
            self, 1,
            "vocab_size", "d_model", "d_embed", "n_head", "d_head", "d_inner", "div_val", "n_layer",
        )  # fmt: skip
        check_at_least(self, 0, "mem_len", "tgt_len")
        check_dropout(self, "dropout", "dropatt")
        require(
            self.attn_type in range(4),
            f"attn_type={self.attn_type} is not known: use 0 (relative, as published), 1 (learned "
            "relative), 2 (absolute) or 3 (learned absolute)",
        )
        if self.init not in INITS:
            raise unknown_choice("init", self.init, INITS)

    @property
    def is_decoder(self) -> bool:
        """Always: a token sees those before it."""
        return True

    @property
    def max_positions(self) -> int:
        """Longest row: only learned absolute positions end."""
        return self.table_length if self.attn_type == LEARNED_ABSOLUTE else UNLIMITED

    @property
    def seen_whole(self) -> int:
        """Length of the rows of which each token sees all before it."""
        return max(self.mem_len, 1) if self.same_length else self.max_positions

    @property
    def relative(self) -> bool:
        """Whether attention knows distances, and not places."""
        return self.attn_type in (RELATIVE, LEARNED_RELATIVE)

    @property
    def table_length(self) -> int:
        """Learned positions of a layer, in the types that have them."""
        return self.tgt_len + self.mem_len

    @property
    def cluster_ends(self) -> list[int]:
        """One past the last token of each cluster."""
        return [*self.cutoffs, self.vocab_size]

    @property
    def tied_projections(self) -> list[bool]:
        """Whether each cluster's projection is the embedding's too."""
        if self.tie_projs:
            return list(self.tie_projs)
        return [False] + [self.proj_share_all_but_first] * len(self.cutoffs)

    def reach(self, mem_len: int) -> int | None:
        """The largest distance that is seen; None for any."""
        return mem_len - 1 if self.same_length else None

    def validate(self) -> None:
        """Checks how the fields fit together.

        Raises:
            UserError: They do not; the message names the keys and values that would.
        """
        ends = self.cluster_ends
        require(
            all(a < b for a, b in zip([0, *ends], ends, strict=False)),
            f"cutoffs={self.cutoffs} have to rise, from 1 on and below "
            f"vocab_size={self.vocab_size}: use {self.fitting_cutoffs(self.vocab_size)}",
        )
        require(
            self.adaptive or not self.cutoffs,
            f"adaptive=False has no clusters, and cutoffs={self.cutoffs}: use cutoffs=[]",
        )
        narrowest = self.d_embed // self.div_val ** len(self.cutoffs)
        require(
            narrowest >= 1,
            f"div_val={self.div_val} leaves nothing of d_embed={self.d_embed} for the last of "
            f"{len(ends)} clusters: use div_val=1, or fewer cutoffs",
        )
        require(
            len(self.tied_projections) == len(ends),
            f"tie_projs={self.tie_projs} has to have an entry for each of {len(ends)} clusters: "
            "leave it out, or add them",
        )
        require(
            self.d_model % 2 == 0 or self.attn_type not in (RELATIVE, ABSOLUTE),
            f"d_model={self.d_model} is odd, and positions are pairs of sines and cosines: use "
            f"{self.d_model + 1}",
        )
        require(
            not self.same_length or self.mem_len >= 1,
            "same_length=True lets a token see mem_len=0 tokens: use mem_len=1 or more, or "
            "same_length=False",
        )
        require(
            self.attn_type not in (ABSOLUTE, LEARNED_ABSOLUTE) or self.untie_r,
            f"untie_r=False shares biases that attn_type={self.attn_type} does not have: use "
            "untie_r=True, or attn_type=0",
        )
        require(
            self.attn_type != LEARNED_RELATIVE or self.untie_r,
            "untie_r=False shares biases that attn_type=1 has for each layer: use untie_r=True, or "
            "attn_type=0",
        )
        require(
            self.attn_type != LEARNED_ABSOLUTE or self.n_head * self.d_head == self.d_model,
            f"attn_type=3 adds n_head={self.n_head} x d_head={self.d_head} numbers to "
            f"d_model={self.d_model}: make them equal",
        )
        require(
            self.attn_type not in (LEARNED_RELATIVE, LEARNED_ABSOLUTE) or self.table_length >= 1,
            f"attn_type={self.attn_type} learns positions for tgt_len=0 and mem_len=0 tokens: use "
            "tgt_len=512, or the length of the rows",
        )
        require(
            self.sample_softmax <= 0 or (not self.cutoffs and self.div_val == 1),
            f"sample_softmax={self.sample_softmax} estimates one softmax over the vocabulary: use "
            "cutoffs=[] and div_val=1, or sample_softmax=-1",
        )
        check_token_ids(self, "pad_token_id", "bos_token_id", "eos_token_id")

    @staticmethod
    def fitting_cutoffs(vocab_size: int) -> list[int]:
        """Cutoffs for a vocabulary in the published proportions; none where it is small."""
        if vocab_size < SMALLEST_CLUSTERED:
            return []
        *inner, whole = PUBLISHED_CLUSTERS
        return [vocab_size * end // whole for end in inner]

    def check_length(self, length: int) -> None:
        """Refuses a row that learned absolute positions do not reach."""
        require(
            length <= self.max_positions,
            f"a row of {length} tokens is longer than the {self.max_positions} positions that "
            f"attn_type=3 has learned (tgt_len={self.tgt_len} + mem_len={self.mem_len}): shorten "
            "it, or raise tgt_len",
        )

    def check_shares(self, sequence_length: int, degree: int) -> None:
        """Refuses a `parallelism.sequence` that the length or the heads cannot be shared by."""

        def problem(shares: int) -> str | None:
            if sequence_length % shares:
                return f"sequence_length={sequence_length} is not a multiple of it"
            if self.n_head % shares:
                return f"n_head={self.n_head}, which attention deals out, is not a multiple of it"
            return None

        check_degree(problem, degree)

    def to_dict(self) -> dict[str, Any]:
        """The fields as the published `config.json` has them, and ours beside them."""
        return {"model_type": MODEL_TYPE, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> TransformerXLConfig:
        """Reads the content of a published `config.json`.

        Raises:
            UserError: A key is not known, or a value cannot work.
        """
        values = dict(published)
        if "n_token" in values:
            values.setdefault("vocab_size", values.pop("n_token"))
        extended = values.pop("ext_len", 0)
        require(extended == 0, f"ext_len={extended}: only rows without extended context are known")
        # The published model sees zeros, and has no notion of documents.
        values.setdefault("zero_memory", True)
        values.setdefault("memory_across_documents", True)
        config = cls(**known_values(cls, values, MODEL_TYPE, IGNORED_KEYS))
        config.validate()
        return config


def resolve(
    config: TransformerXLConfig,
    *,
    vocab_size: int,
    sequence_length: int,
    objective: str,
    special_ids: Mapping[str, int | None] | None = None,
) -> TransformerXLConfig:
    """Completes a config from what a run knows, and refuses what cannot work.

    Args:
        config: What the user gave; not modified.
        vocab_size: Number of ids of the tokenizer.
        sequence_length: Positions in a row.
        objective: What it is trained to predict, which has to be the next token.
        special_ids: The tokenizer's, by their roles (`pad`, `eos`, …); what is missing leaves the
            config's.

    Raises:
        UserError: A value cannot work; the message names values that would.
    """
    config = copy.deepcopy(config)
    require(
        objective in NEXT_TOKEN,
        f"objective={objective}: a Transformer-XL predicts the next token; use objective=causal",
    )
    settle_vocabulary(config, TransformerXLConfig.vocab_size, vocab_size, special_ids or {})
    if config.adaptive and not config.cutoffs and config.sample_softmax <= 0:
        config.cutoffs = config.fitting_cutoffs(config.vocab_size)
    if config.tgt_len == 0 and config.attn_type in (LEARNED_RELATIVE, LEARNED_ABSOLUTE):
        config.tgt_len = sequence_length
    config.validate()
    config.check_length(sequence_length)
    return config
