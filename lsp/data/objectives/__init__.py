"""What a model is trained to predict: packed rows in, inputs and labels out.

An objective is a pure function of a row, its document numbers and a generator that depends on
(seed, global sample) alone; so it is resumable by construction.
"""

from __future__ import annotations

from lsp.core.errors import require, unknown_choice
from lsp.core.objectives import MASKED
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.causal import causal
from lsp.data.objectives.denoising import denoising
from lsp.data.objectives.fill_in_the_middle import fill_in_the_middle
from lsp.data.objectives.future_ngram import future_ngram
from lsp.data.objectives.gap_sentences import gap_sentences
from lsp.data.objectives.masked import masked
from lsp.data.objectives.next_sentence import next_sentence
from lsp.data.objectives.permutation import permutation
from lsp.data.objectives.recurring_span import recurring_span
from lsp.data.objectives.replaced_token import replaced_token
from lsp.data.objectives.sample import Objective, Vocabulary
from lsp.data.objectives.sentence_order import sentence_order
from lsp.data.objectives.span_corruption import span_corruption
from lsp.data.objectives.special import special_roles
from lsp.data.objectives.translation import translation

OBJECTIVES: dict[str, Objective] = {
    "causal": causal,
    "fill_in_the_middle": fill_in_the_middle,
    "masked": masked,
    "next_sentence": next_sentence,
    "sentence_order": sentence_order,
    "replaced_token": replaced_token,
    "span_corruption": span_corruption,
    "denoising": denoising,
    "gap_sentences": gap_sentences,
    "future_ngram": future_ngram,
    "translation": translation,
    "permutation": permutation,
    "recurring_span": recurring_span,
}

_MASK = (*MASKED, "denoising", "gap_sentences", "future_ngram")
_OWN = "tokenizer=bytes, bpe, unigram and word"


def get(config: ObjectiveConfig, vocabulary: Vocabulary) -> Objective:
    """The objective that a configuration names.

    Raises:
        UserError: If there is none of that name, or the vocabulary lacks what it needs.
    """
    name = config.name
    if name not in OBJECTIVES:
        raise unknown_choice("objective.name", name, OBJECTIVES)
    require(
        name not in _MASK or vocabulary.mask_id is not None,
        f"objective={name} needs a tokenizer with a mask token; this one has none. "
        f"{_OWN} have one, and roberta has",
    )
    required = special_roles(config, sequence_length=1)
    lacking = [role for role in required if role not in vocabulary.roles]
    if name == "span_corruption":  # any number of sentinels will do, beyond the closing one
        lacking = [] if len(vocabulary.sentinels) > 1 else ["sentinel_0", "sentinel_1"]
    require(
        not lacking,
        f"objective={name} needs a tokenizer with special tokens for {', '.join(lacking)}; this "
        f"one has none. {_OWN} get them when data is prepared for this objective",
    )
    _require_sentences(config, vocabulary)
    return OBJECTIVES[name]


def _require_sentences(config: ObjectiveConfig, vocabulary: Vocabulary) -> None:
    permuted = config.name == "denoising" and config.permute_sentences
    written = config.name == "gap_sentences" and config.pseudo_sentence == 0
    if not permuted and not written:
        return
    key = "objective.permute_sentences=true" if permuted else "objective.pseudo_sentence=0"
    instead = "false" if permuted else "32 (tokens that count as a sentence)"
    require(
        vocabulary.marks.shows_sentences,
        f"{key} needs a tokenizer whose tokens show where sentences or lines end; no token of "
        f"this one is or ends with a full stop or a line break: use {instead}",
    )
