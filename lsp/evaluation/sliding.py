"""Sliding evaluation: every token of a text predicted with much before it, as at the end of a row.

A model without memory reads overlapping windows (1901.02860, section 1): each begins a *stride*
after the one before it, and predicts what that has not; the smaller the stride, the more context
the worst token has, and the more is computed. A model with a memory reads each token once, segment
by segment, and its memory may be longer than in training (sections 3.2 and 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lsp.core.batch import IGNORE_INDEX
from lsp.evaluation.figures import Sums, Units
from lsp.evaluation.reading import read_windows
from lsp.evaluation.texts import Tokens
from lsp.models.interface import LanguageModel

LANE_SEGMENTS = 16
"""Segments of a stream that is cut off a long text, so that its cold start hardly shows."""


def by_stride(
    model: LanguageModel,
    texts: Sequence[Tokens],
    strides: Sequence[int],
    *,
    window: int,
    tokens_at_once: int,
    units: Units,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Predicts all tokens of the texts but the first of each, with every stride.

    Args:
        model: A causal model in evaluation mode, without memory.
        texts: Unbroken runs of tokens.
        strides: From 1 to `window - 1` each.
        window: Tokens of a window.
        tokens_at_once: Tokens in a batch.
        units: Of the split.
        advance: Told the number of tokens of each batch that is done.

    Yields:
        For each stride its figures, and the context that every token has which has so much before
        it at all (`context`).
    """
    for stride in strides:
        sums = Sums()
        for text in texts:
            for windows_BL, scored in _windows(text, window, stride, tokens_at_once):
                sums.add(*read_windows(model, windows_BL, scored, window))
                advance(windows_BL.numel())
        yield {"stride": stride, "context": window - stride, **units.figures(sums)}


def work_by_stride(texts: Sequence[Tokens], strides: Sequence[int], window: int) -> int:
    """Tokens that `by_stride` reads."""
    spans = [span for stride in strides for text in texts for span in _spans(text, window, stride)]
    return sum(stop - start for start, stop, _ in spans)


def _spans(text: Tokens, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Beginning and end of each window, and how many of its last tokens are predicted."""
    if len(text) < 2:
        return
    stop = min(window, len(text))
    yield 0, stop, stop - 1
    while stop < len(text):
        before, stop = stop, min(stop + stride, len(text))
        yield stop - window, stop, stop - before


def _windows(
    text: Tokens, window: int, stride: int, tokens_at_once: int
) -> Iterator[tuple[torch.Tensor, int]]:
    """Batches of windows that predict equally many tokens, and how many."""
    tokens, size = torch.from_numpy(text), max(1, tokens_at_once // window)
    held: list[torch.Tensor] = []
    alike: tuple[int, int] | None = None
    for start, stop, scored in _spans(text, window, stride):
        kind = (stop - start, scored)
        if held and (kind != alike or len(held) == size):
            yield torch.stack(held), alike[1] if alike else scored
            held = []
        held.append(tokens[start:stop])
        alike = kind
    if held and alike:
        yield torch.stack(held), alike[1]


@contextmanager
def settings(config: Any, **changes: Any) -> Iterator[None]:
    """Changes fields of a model's configuration for a while; what is None stays as it is."""
    before = {key: getattr(config, key) for key, value in changes.items() if value is not None}
    try:
        for key in before:
            setattr(config, key, changes[key])
        yield
    finally:
        for key, value in before.items():
            setattr(config, key, value)


@contextmanager
def memory_of(model: Any, length: int) -> Iterator[None]:
    """Makes a model remember more or less for a while than it was trained with."""
    try:
        model.reset_memory_length(length)
        yield
    finally:
        model.reset_memory_length(model.config.mem_len)


def by_memory(
    model: LanguageModel,
    texts: Sequence[Tokens],
    memories: Sequence[int],
    *,
    segment: int,
    tokens_at_once: int,
    units: Units,
    same_length: bool | None = None,
    clamp_len: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Reads the texts segment by segment, with memories of several lengths.

    A long text is cut into streams of at least `LANE_SEGMENTS` segments, that are read side by
    side; each begins with nothing to remember.

    Args:
        model: A causal model with a memory, in evaluation mode.
        texts: Unbroken runs of tokens.
        memories: Lengths of the memory, in place of the trained one.
        segment: Tokens read at a time.
        tokens_at_once: Tokens in a batch.
        units: Of the split.
        same_length: Whether every token sees equally many, in place of the config's.
        clamp_len: Greatest distance that is told apart, in place of the config's.
        advance: Told the number of tokens of each batch that is done.

    Yields:
        For each memory its figures.
    """
    lanes = _lanes(texts, segment)
    size = max(1, tokens_at_once // segment)
    for memory in memories:
        sums = Sums()
        changes = settings(model.config, same_length=same_length, clamp_len=clamp_len)
        with changes, memory_of(model, memory):
            for first in range(0, len(lanes), size):
                _read_lanes(model, lanes[first : first + size], segment, sums, advance)
        yield {"memory": memory, "segment": segment, **units.figures(sums)}


def work_by_memory(texts: Sequence[Tokens], memories: Sequence[int]) -> int:
    """Tokens that `by_memory` reads."""
    return len(memories) * sum(len(text) - 1 for text in texts)


def _lanes(texts: Sequence[Tokens], segment: int) -> list[tuple[Tokens, int]]:
    """Streams, the longest first: tokens, and the position of the first in its text."""
    lanes = []
    for text in texts:
        count = max(1, (len(text) - 1) // (LANE_SEGMENTS * segment))
        length = -(-(len(text) - 1) // (count * segment)) * segment
        for start in range(0, len(text) - 1, length):
            # With the token after it, which is predicted here.
            lanes.append((text[start : start + length + 1], start))
    return sorted(lanes, key=lambda lane: -len(lane[0]))


def _read_lanes(
    model: LanguageModel,
    lanes: Sequence[tuple[Tokens, int]],
    segment: int,
    sums: Sums,
    advance: Callable[[int], None],
) -> None:
    device = next(model.parameters()).device
    longest = -(-(len(lanes[0][0]) - 1) // segment) * segment
    tokens_BL = torch.zeros(len(lanes), longest + 1, dtype=torch.int64)
    positions_BL = torch.zeros(len(lanes), longest, dtype=torch.int64)
    lengths_B = torch.tensor([len(tokens) for tokens, _ in lanes])
    for row, (tokens, start) in enumerate(lanes):
        tokens_BL[row, : len(tokens)] = torch.from_numpy(tokens)
        positions_BL[row] = torch.arange(start, start + longest)
    index_L = torch.arange(longest)
    labels_BL = tokens_BL[:, 1:].masked_fill(index_L >= lengths_B[:, None] - 1, IGNORE_INDEX)
    segments_BL = (index_L < lengths_B[:, None]).long()
    memory = None
    for start in range(0, longest, segment):
        # The longest come first: those that have ended are the last ones.
        live, part = int((lengths_B > start + 1).sum()), slice(start, start + segment)
        model.recall(None if memory is None else {k: m[:live] for k, m in memory.items()})
        batch = (tokens_BL, labels_BL, segments_BL, positions_BL)
        losses_T, hits_T = model.token_losses(*(x_BL[:live, part].to(device) for x_BL in batch))
        sums.add(losses_T, hits_T)
        memory = model.remembered()
        advance(len(losses_T))
    model.recall(None)
