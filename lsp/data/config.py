"""What the user may say about the objective."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from lsp.core.errors import UserError, require, unknown_choice
from lsp.core.objectives import OBJECTIVES

UNITS = ("token", "whole_word", "span")
STARTS = ("pad", "eos", "bos", "cls", "sep")


@dataclass
class ObjectiveConfig:
    """What the model is trained to predict.

    Each key belongs to some objectives (`READS`), and is refused beside any other. The defaults
    are those of the papers.

    Attributes:
        name: One of `lsp.core.objectives.OBJECTIVES`.
        unit: What is hidden as one: a `token` (BERT), a `whole_word`, or a `span` of words whose
            number is drawn from a geometric distribution (SpanBERT, 1907.10529, section 3.1).
        mask_probability: Share of tokens that are predicted.
        replace_probability: Share of those that become the mask token.
        random_probability: Share of those that become a random token; the rest stay.
        span_success: Of the geometric distribution of a span's length, for `unit=span`.
        max_span_length: Words of the longest span (`unit=span`); tokens of the longest
            recurring one (`recurring_span`).
        corruption_rate: Share of tokens that the decoder predicts (`span_corruption`).
        infill_rate: Share of tokens that are cut out in spans (`denoising`).
        mean_span_length: Mean number of tokens in a span that is cut out; `denoising` draws it
            from a Poisson distribution.
        permute_sentences: Whether sentences change places (`denoising`).
        token_mask_rate: Share of the remaining tokens that become the mask token (`denoising`).
        token_delete_rate: Share of the remaining tokens that are left out (`denoising`).
        rotate: Whether a document begins at a random token of its own (`denoising`).
        gap_sentence_ratio: Share of sentences that the decoder writes (`gap_sentences`).
        pseudo_sentence: Tokens that count as a sentence where the vocabulary cannot tell where
            one ends; 0 refuses such a vocabulary (`gap_sentences`).
        context_ratio: XLNet's K: a token in so many is predicted (`permutation`).
        max_ngram: Tokens of the longest span that is predicted as one (`permutation`).
        block_length: Tokens of which one span is hidden (`future_ngram`).
        fim_rate: Share of documents whose middle moves to the end (`fill_in_the_middle`).
        spm_rate: Share of those whose suffix comes before the prefix.
        max_questions: Recurring spans of a row that are asked for, at most (`recurring_span`).
        decoder_length: Tokens that the decoder reads; null for what the rates lead to. What does
            not fit stays in the encoder's text, and is not predicted.
        decoder_start: Special token that the decoder's text begins with: `pad` (T5, Pegasus),
            `eos` (BART), `sep` (the published ProphetNet), `bos` or `cls`; null is `eos` for
            denoising and `pad` otherwise.
    """

    name: str = "causal"
    unit: str = "token"
    mask_probability: float = 0.15
    replace_probability: float = 0.8
    random_probability: float = 0.1
    span_success: float = 0.2
    max_span_length: int = 10
    corruption_rate: float = 0.15
    infill_rate: float = 0.3
    mean_span_length: float = 3.0
    permute_sentences: bool = True
    token_mask_rate: float = 0.0
    token_delete_rate: float = 0.0
    rotate: bool = False
    gap_sentence_ratio: float = 0.3
    pseudo_sentence: int = 32
    context_ratio: int = 6
    max_ngram: int = 5
    block_length: int = 64
    fim_rate: float = 0.5
    spm_rate: float = 0.5
    max_questions: int = 30
    decoder_length: int | None = None
    decoder_start: str | None = None

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise unknown_choice("objective.name", self.name, OBJECTIVES)
        self._check_read()
        if self.unit not in UNITS:
            raise unknown_choice("objective.unit", self.unit, UNITS)
        if self.decoder_start not in (None, *STARTS):
            raise unknown_choice("objective.decoder_start", self.decoder_start, STARTS)
        for key in _BETWEEN:
            value = getattr(self, key)
            require(
                0 < value < 1,
                f"objective.{key}={value} must be between 0 and 1, e.g. {_DEFAULTS[key]}",
            )
        for key in _SHARES:
            value = getattr(self, key)
            require(0 <= value <= 1, f"objective.{key}={value} must be between 0 and 1")
        for key in ("token_mask_rate", "token_delete_rate"):
            value = getattr(self, key)
            require(0 <= value < 1, f"objective.{key}={value} must be 0 or more, and below 1")
        for key in _COUNTS:
            value = getattr(self, key)
            require(
                value is None or value >= 1,
                f"objective.{key}={value} must be 1 or more, e.g. {_DEFAULTS[key] or 128}",
            )
        require(
            self.mean_span_length >= 1,
            f"objective.mean_span_length={self.mean_span_length} must be 1 or more, e.g. 3",
        )
        require(
            self.pseudo_sentence >= 0,
            f"objective.pseudo_sentence={self.pseudo_sentence} must be 0 (refuse) or more, e.g. 32",
        )
        require(
            self.context_ratio >= 2,
            f"objective.context_ratio={self.context_ratio} must be 2 or more, e.g. 6",
        )
        require(
            self.replace_probability + self.random_probability <= 1,
            f"objective.replace_probability={self.replace_probability} and "
            f"objective.random_probability={self.random_probability} must add up to 1 or less",
        )

    @property
    def replaced(self) -> float:
        """Share of the predicted tokens that become the mask token: all, for ELECTRA."""
        return 1.0 if self.name == "replaced_token" else self.replace_probability

    @property
    def randomized(self) -> float:
        """Share of the predicted tokens that become a random one."""
        return 0.0 if self.name == "replaced_token" else self.random_probability

    @property
    def decoder_start_role(self) -> str:
        """Role of the special token that the decoder's text begins with."""
        return self.decoder_start or ("eos" if self.name == "denoising" else "pad")

    def decoder_tokens(self, sequence_length: int) -> int:
        """Tokens that the decoder reads of a row.

        Where that is not given, it is what the rates lead to, with the tokens that each document
        has beside, for a document in 32 tokens at most; a multiple of 8.
        """
        if self.decoder_length is not None:
            return self.decoder_length
        share = {
            "span_corruption": self.corruption_rate * (1 + 1 / self.mean_span_length),
            "gap_sentences": 1.5 * self.gap_sentence_ratio,  # they are longer than others
            "future_ngram": self.mask_probability,
        }.get(self.name)
        if share is None:
            return sequence_length
        wanted = math.ceil(share * sequence_length) + 2 * (1 + sequence_length // 32)
        return min(sequence_length, -(-wanted // 8) * 8)

    def _check_read(self) -> None:
        for key, default in _DEFAULTS.items():
            value = getattr(self, key)
            if value == default or key in READS[self.name]:
                continue
            readers = ", ".join(name for name in OBJECTIVES if key in READS[name])
            raise UserError(
                f"objective.{key}={value} is not read by objective={self.name}, but by {readers}: "
                "leave it out, or choose one of those"
            )
        for key in ("span_success", "max_span_length"):
            value = getattr(self, key)
            require(
                value == _DEFAULTS[key] or self.unit == "span" or self.name == "recurring_span",
                f"objective.{key}={value} is read with objective.unit=span alone: add that, or "
                "leave it out",
            )


_HIDING = ("mask_probability", "unit", "span_success", "max_span_length")
_REPLACING = ("replace_probability", "random_probability")
_DECODING = ("decoder_length", "decoder_start")

READS: dict[str, tuple[str, ...]] = {
    "causal": (),
    "masked": (*_HIDING, *_REPLACING),
    "next_sentence": (*_HIDING, *_REPLACING),
    "sentence_order": (*_HIDING, *_REPLACING),
    "replaced_token": _HIDING,
    "permutation": ("context_ratio", "max_ngram"),
    "recurring_span": ("max_questions", "max_span_length"),
    "fill_in_the_middle": ("fim_rate", "spm_rate"),
    "span_corruption": ("corruption_rate", "mean_span_length", *_DECODING),
    "denoising": (
        "infill_rate", "mean_span_length", "permute_sentences", "token_mask_rate",
        "token_delete_rate", "rotate", "decoder_start",
    ),
    "gap_sentences": ("gap_sentence_ratio", "pseudo_sentence", *_DECODING),
    "future_ngram": ("mask_probability", *_REPLACING, "block_length", *_DECODING),
    "translation": ("decoder_start",),
}  # fmt: skip
"""The keys that each objective reads."""

_BETWEEN = ("mask_probability", "span_success", "corruption_rate", "gap_sentence_ratio")
_SHARES = ("replace_probability", "random_probability", "infill_rate", "fim_rate", "spm_rate")
_COUNTS = ("max_span_length", "max_ngram", "block_length", "max_questions", "decoder_length")
_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(ObjectiveConfig)
    if field.name != "name"
}
