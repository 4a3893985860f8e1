"""What a model is trained to predict: packed rows in, inputs and labels out.

An objective is a pure function of a row, its document numbers and a generator that depends on
(seed, global sample) alone; so it is resumable by construction.
"""

from __future__ import annotations

from lsp.core.errors import require, unknown_choice
from lsp.data.objectives.causal import causal
from lsp.data.objectives.masked import masked
from lsp.data.objectives.sample import Objective, Vocabulary

OBJECTIVES: dict[str, Objective] = {"causal": causal, "masked": masked}


def get(name: str, vocabulary: Vocabulary) -> Objective:
    """The objective called `name`.

    Raises:
        UserError: If there is none of that name, or the vocabulary lacks what it needs.
    """
    if name not in OBJECTIVES:
        raise unknown_choice("objective.name", name, OBJECTIVES)
    require(
        name != "masked" or vocabulary.mask_id is not None,
        "objective=masked needs a tokenizer with a mask token; this one has none. "
        "tokenizer=bytes, bpe, unigram, word and roberta have one",
    )
    return OBJECTIVES[name]
