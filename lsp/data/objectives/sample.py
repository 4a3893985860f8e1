"""What an objective is given, and what it gives: one row before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from data_pipelines.special_tokens import SENTINEL
from data_pipelines.token_marks import TokenMarks, every_token_a_word
from lsp.data.config import ObjectiveConfig


@dataclass(frozen=True)
class Vocabulary:
    """What an objective needs to know of the tokenizer.

    Attributes:
        size: Ids that there are.
        mask_id: Of the mask token.
        special_ids: Of all special tokens.
        roles: Their ids by role: `pad`, `eos`, `cls`, `sentinel_0`, …
        read_marks: Gives the tables that tell words and sentences; None where each token is a
            word, and none ends a sentence.
    """

    size: int
    mask_id: int | None
    special_ids: frozenset[int]
    roles: Mapping[str, int] = field(default_factory=dict)
    read_marks: Callable[[], TokenMarks] | None = None

    @cached_property
    def marks(self) -> TokenMarks:
        """Where words and sentences begin, by token."""
        return self.read_marks() if self.read_marks else every_token_a_word(self.size)

    @cached_property
    def is_special(self) -> np.ndarray:
        """(V,) which tokens are special."""
        table_V = np.zeros(self.size, bool)
        table_V[list(self.special_ids)] = True
        return table_V

    @cached_property
    def sentinels(self) -> np.ndarray:
        """Ids of the tokens that stand for spans, in their order."""
        found: list[int] = []
        while (number := self.roles.get(f"{SENTINEL}{len(found)}")) is not None:
            found.append(number)
        return np.array(found, np.int64)

    @property
    def pad_id(self) -> int:
        return self.roles.get("pad", 0)

    @property
    def eos_id(self) -> int:
        """Of the token that ends documents; -1 where there is none."""
        return self.roles.get("eos", -1)


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
