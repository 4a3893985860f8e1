"""Loss by context length: the same tokens, predicted from less and less of what is before them.

If a model uses far context, taking it away costs something. A *context length* c is a window of c
tokens that is read as if the text began there, and in which the last half is predicted: a token
sees between c/2 and c - 1 tokens before it. The windows of every c are laid so that they predict
exactly the same tokens, which costs one reading of the text for each c. (A token that sees exactly
c tokens would need a window of its own.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lsp.evaluation.figures import Sums, Units
from lsp.evaluation.reading import in_batches, read_windows
from lsp.evaluation.texts import Tokens
from lsp.models.interface import LanguageModel


def context_lengths(longest: int, shortest: int) -> list[int]:
    """Even halves of `longest`, down to `shortest`, in ascending order; `longest` at least."""
    lengths = [longest]
    while lengths[0] % 4 == 0 and lengths[0] // 2 >= shortest:
        lengths.insert(0, lengths[0] // 2)
    return lengths


def longest_that_fits(longest: int, shortest: int, texts: Sequence[Tokens]) -> int | None:
    """The largest half of `longest` for which a text is long enough; None if there is none."""
    longest_text = max((len(text) for text in texts), default=0)
    fitting = [c for c in context_lengths(longest, shortest) if c <= longest_text]
    return max(fitting, default=None)


def windows_of(text: Tokens, context: int, longest: int) -> list[torch.Tensor]:
    """Windows of `context` tokens whose last halves are the targets, once each, in order.

    The targets are the tokens from number `longest / 2` on, as far as whole windows of `longest`
    go. `context` is a half of a half … of `longest`.
    """
    half, end = context // 2, len(text) // (longest // 2) * (longest // 2)
    stops = range(longest // 2 + half, end + 1, half)
    tokens = torch.from_numpy(text)
    return [tokens[stop - context : stop] for stop in stops]


def by_context(
    model: LanguageModel,
    texts: Sequence[Tokens],
    lengths: Sequence[int],
    *,
    segment: int,
    tokens_at_once: int,
    units: Units,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Predicts the same tokens from contexts of several lengths.

    Args:
        model: A causal model in evaluation mode.
        texts: Unbroken runs of tokens; those shorter than the longest context predict nothing.
        lengths: Of the contexts, ascending, as `context_lengths` gives them.
        segment: Tokens read at a time; a longer context is remembered.
        tokens_at_once: Tokens in a batch.
        units: Of the split.
        advance: Told the number of tokens of each batch that is done.

    Yields:
        For each length the context (`context`; `from` and `to`: the fewest and most tokens that a
        target sees) and its figures.
    """
    for context in lengths:
        sums = Sums()
        windows = [w for text in texts for w in windows_of(text, context, lengths[-1])]
        for windows_BL in in_batches(windows, tokens_at_once):
            sums.add(*read_windows(model, windows_BL, context // 2, segment))
            advance(windows_BL.numel())
        seen = {"context": context, "from": context // 2, "to": context - 1}
        yield {**seen, **units.figures(sums)}


def work(texts: Sequence[Tokens], lengths: Sequence[int]) -> int:
    """Tokens that `by_context` reads."""
    half = lengths[-1] // 2
    blocks = sum(max(0, len(text) // half - 1) for text in texts)
    return len(lengths) * blocks * 2 * half
