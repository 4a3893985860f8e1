"""What an objective is given, and what it gives: one row before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lsp.data.config import ObjectiveConfig


@dataclass(frozen=True)
class Vocabulary:
    """What an objective needs to know of the tokenizer."""

    size: int
    mask_id: int | None
    special_ids: frozenset[int]


@dataclass(frozen=True)
class Row:
    """A packed row.

    Attributes:
        input_ids: (L,) int64 tokens.
        segment_ids: (L,) int64 document numbers, 0 for padding.
        another: Given a generator, (L,) tokens and (L,) document numbers of a row drawn from the
            same split.
    """

    input_ids: np.ndarray
    segment_ids: np.ndarray
    another: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Sample:
    """What a model reads and predicts of a row; shapes depend on the configuration alone.

    Attributes:
        input_ids: (L,) int64 tokens.
        labels: (L,) int64, or of the length of `decoder_input_ids`; -100 for nothing.
        segment_ids: (L,) int64 document numbers, 0 for padding.
        extra: See `lsp.core.batch.Batch.extra`; without the dimension of the rows.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    segment_ids: np.ndarray
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)


Objective = Callable[[Row, np.random.Generator, ObjectiveConfig, Vocabulary], Sample]
