"""What a model is trained to predict: packed rows in, inputs and labels out.

An objective is a pure function of a row, its document numbers and a generator that depends on
(seed, global sample) alone; so it is resumable by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lsp.core.errors import unknown_choice
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.causal import causal
from lsp.data.objectives.masked import masked


@dataclass(frozen=True)
class Vocabulary:
    """What an objective needs to know of the tokenizer."""

    size: int
    mask_id: int | None
    special_ids: frozenset[int]


Objective = Callable[
    [np.ndarray, np.ndarray, np.random.Generator, ObjectiveConfig, Vocabulary],
    tuple[np.ndarray, np.ndarray],
]

OBJECTIVES: dict[str, Objective] = {"causal": causal, "masked": masked}


def get(name: str) -> Objective:
    """The objective called `name`."""
    if name not in OBJECTIVES:
        raise unknown_choice("objective.name", name, OBJECTIVES)
    return OBJECTIVES[name]
