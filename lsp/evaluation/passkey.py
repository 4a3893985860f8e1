"""Passkey retrieval: does a model find again what it was told once, far back? (2305.16300, 4.2)

A text of filler says a number somewhere, and asks for it at its end. How often a model names it,
by how deep in the text it stood and how long the text is, tells what context it can use at all,
which the loss of ordinary text only hints at. An untrained model names it never; how far it is from
there is told by likelihood: whether the right number is the likeliest of several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from lsp.core.errors import require
from lsp.core.seeding import stream
from lsp.evaluation.reading import in_batches, read_windows
from lsp.models.interface import LanguageModel

PASSKEY_STREAM = 11

TASK = "Somewhere in this text a pass key is given. Remember it: you will be asked for it.\n"
FILLER = (
    "The river runs slowly past the mill. A boat lies at the landing. Nobody is in a hurry here. "
    "The days are long, and the nights are quiet. Then the river runs on. "
)
TOLD = ("\nThe pass key is ", ". Remember it well.\n")
ASKED = "\nWhat was the pass key? The pass key is "

Encode = Callable[[str], list[int]]


class Keys(Protocol):
    """Makes pass keys.

    Attributes:
        tokens: Of a key.
    """

    @property
    def tokens(self) -> int: ...

    def draw(self, generator: np.random.Generator, count: int) -> list[list[int]]:
        """So many different keys, in tokens, all of one length."""
        ...


@dataclass(frozen=True)
class NumberKeys:
    """Numbers of five digits, spelled in the tokens of a tokenizer.

    Attributes:
        encode: Turns text into tokens, without special ones.
        tokens: Of a key. Some tokenizers have tokens of several digits, and of keys that differ in
            length the shortest would be the likeliest.
    """

    encode: Encode
    tokens: int

    def draw(self, generator: np.random.Generator, count: int) -> list[list[int]]:
        keys: dict[tuple[int, ...], None] = {}
        while len(keys) < count:
            key = tuple(self.encode(str(generator.integers(10_000, 100_000))))
            if len(key) == self.tokens:
                keys[key] = None
        return [list(key) for key in keys]


@dataclass(frozen=True)
class TokenKeys:
    """Single tokens, for vocabularies that cannot spell numbers.

    Attributes:
        ids: To choose from.
        tokens: Of a key.
    """

    ids: Sequence[int]
    tokens: int = 1

    def draw(self, generator: np.random.Generator, count: int) -> list[list[int]]:
        chosen = generator.choice(len(self.ids), size=count, replace=False)
        return [[int(self.ids[index])] for index in chosen]


def keys_for(encode: Encode, unknown: int | None, ids: Sequence[int]) -> Keys:
    """Keys that a tokenizer can tell apart.

    Args:
        encode: Turns text into tokens, without special ones.
        unknown: The token of what is not in the vocabulary.
        ids: Ordinary tokens.
    """
    spelled = [tuple(encode(str(number))) for number in range(10_007, 100_000, 997)]
    if len(set(spelled)) < len(spelled) or any(unknown in key for key in spelled):
        return TokenKeys(ids)
    return NumberKeys(encode, Counter(map(len, spelled)).most_common(1)[0][0])


@dataclass(frozen=True)
class Template:
    """The parts of a text, in tokens."""

    task: list[int]
    filler: list[int]
    told: tuple[list[int], list[int]]
    asked: list[int]

    @staticmethod
    def of(encode: Encode) -> Template:
        """In the tokens of a tokenizer."""
        told = (encode(TOLD[0]), encode(TOLD[1]))
        return Template(encode(TASK), encode(FILLER), told, encode(ASKED))

    def shortest(self, key: int) -> int:
        """Tokens of a text without filler, for a key of so many."""
        return sum(map(len, (self.task, *self.told, self.asked))) + 2 * key

    def text(self, key: list[int], length: int, depth: float, answer: list[int]) -> list[int]:
        """A text of `length` tokens that gives `key` at `depth` and ends in `answer`.

        Args:
            key: What is told.
            length: Of the text, answer included; not below `shortest`.
            depth: 0 at the beginning of the filler to 1 at its end.
            answer: The key, or another.
        """
        missing = length - self.shortest(len(key))
        before = round(depth * missing)
        filler = self.filler * (missing // len(self.filler) + 1)
        told = [*self.told[0], *key, *self.told[1]]
        return [*self.task, *filler[:before], *told, *filler[before:missing], *self.asked, *answer]


@dataclass(frozen=True)
class Plan:
    """What is asked.

    Attributes:
        lengths: Tokens of the texts.
        depths: Where the key stands, from 0 to 1.
        samples: Texts for each of both.
        distractors: Other keys that the right one is compared with.
        seed: Of the keys.
    """

    lengths: Sequence[int]
    depths: Sequence[float]
    samples: int
    distractors: int
    seed: int

    @property
    def work(self) -> int:
        """Tokens that are read."""
        each = len(self.depths) * self.samples * (1 + self.distractors)
        return each * sum(self.lengths)


def ask(
    model: LanguageModel,
    encode: Encode,
    keys: Keys,
    plan: Plan,
    *,
    segment: int,
    tokens_at_once: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Asks for pass keys.

    A key counts as named when each of its tokens is the likeliest after those before it, which is
    what greedy generation would write.

    Args:
        model: A causal model in evaluation mode.
        encode: Turns text into tokens, without special ones.
        keys: Makes the keys.
        plan: What is asked.
        segment: Tokens read at a time; longer texts are remembered.
        tokens_at_once: Tokens in a batch.
        advance: Told the number of tokens of each batch that is done.

    Yields:
        For each length and depth: `accuracy`, the share of keys named; `likeliest`, the share that
        were likelier than every distractor; `margin`, by how many nats the right key was likelier
        than the likeliest distractor, on average.

    Raises:
        UserError: A length has no room for the question.
    """
    template = Template.of(encode)
    for length in plan.lengths:
        shortest = template.shortest(keys.tokens)
        require(
            length >= shortest,
            f"passkey_lengths={list(plan.lengths)}: a text with the question takes {shortest} "
            "tokens or more",
        )
        for number, depth in enumerate(plan.depths):
            windows = []
            for sample in range(plan.samples):
                generator = stream(plan.seed, PASSKEY_STREAM, length, number, sample)
                key, *others = keys.draw(generator, 1 + plan.distractors)
                for answer in (key, *others):
                    windows.append(torch.tensor(template.text(key, length, depth, answer)))
            losses, hits = [], []
            for windows_BL in in_batches(windows, tokens_at_once):
                losses_BK, hits_BK = read_windows(model, windows_BL, keys.tokens, segment)
                losses.append(losses_BK.double().sum(1))
                hits.append(hits_BK.all(1))
                advance(windows_BL.numel())
            losses_SA = torch.cat(losses).view(plan.samples, -1)
            named_S = torch.cat(hits).view(plan.samples, -1)[:, 0]
            margins_S = losses_SA[:, 1:].amin(1) - losses_SA[:, 0]
            yield {
                "length": length,
                "depth": depth,
                "samples": plan.samples,
                "accuracy": float(named_S.double().mean()),
                "likeliest": float((margins_S > 0).double().mean()),
                "margin": float(margins_S.mean()),
            }
