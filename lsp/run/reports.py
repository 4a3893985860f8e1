"""The reports of `lsp evaluate` beside the loss of the split: what context is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lsp.core.errors import UserError, require
from lsp.evaluation.context import by_context, context_lengths, longest_that_fits
from lsp.evaluation.context import work as context_work
from lsp.evaluation.passkey import Plan, Template, ask, keys_for
from lsp.evaluation.sliding import by_memory, by_stride, work_by_memory, work_by_stride
from lsp.evaluation.texts import Tokens, read_texts
from lsp.run.config import EvaluateConfig
from lsp.run.generate import load_tokenizer
from lsp.run.subject import Subject, note, progress_of

Found = Iterator[dict[str, Any]]


def context(subject: Subject, config: EvaluateConfig) -> Found:
    """The loss by context length."""
    if not _asked(subject, config, "context"):
        return
    texts = _texts(subject, config)
    wanted = config.context_longest or _far(subject) // 2 * 2  # the last half is predicted
    _check_length(subject, "context_longest", wanted)
    longest = longest_that_fits(wanted, config.context_shortest, texts)
    if longest is None:
        note(
            f"context: no document of the {len(texts)} read has context_shortest="
            f"{config.context_shortest} tokens in a row; it is left out"
        )
        return
    if longest < wanted:
        note(f"context: no document read has {wanted:,} tokens in a row: {longest:,} is longest")
    lengths = context_lengths(longest, config.context_shortest)
    with progress_of("by context length", context_work(texts, lengths)) as advance:
        yield from by_context(
            subject.model,
            texts,
            lengths,
            segment=_segment(subject, longest),
            tokens_at_once=_tokens_at_once(subject),
            units=subject.units,
            advance=advance,
        )


def passkey(subject: Subject, config: EvaluateConfig) -> Found:
    """How often pass keys are found again, by length and depth."""
    if not _asked(subject, config, "passkey"):
        return
    tokenizer = load_tokenizer(subject.loaded)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(subject.model.config.vocab_size) if i not in special]
    if len(ordinary) <= config.passkey_distractors:
        raise UserError(
            f"passkey_distractors={config.passkey_distractors}: the vocabulary has "
            f"{len(ordinary)} tokens to choose keys from; use fewer"
        )
    keys = keys_for(encode, tokenizer.unk_token_id, ordinary)
    lengths = config.passkey_lengths
    if not lengths:
        shortest = Template.of(encode).shortest(keys.tokens)
        lengths = [n for n in context_lengths(_far(subject), 64) if n >= shortest]
        if not lengths:
            note(
                f"passkey: the question takes {shortest} tokens, and the model reads "
                f"{_far(subject)}; it is left out"
            )
            return
    _check_length(subject, "passkey_lengths", max(lengths))
    depths = [i / max(1, config.passkey_depths - 1) for i in range(config.passkey_depths)]
    plan = Plan(lengths, depths, config.passkey_samples, config.passkey_distractors, config.seed)
    with progress_of("pass keys", plan.work) as advance:
        yield from ask(
            subject.model,
            encode,
            keys,
            plan,
            segment=_segment(subject, max(lengths)),
            tokens_at_once=_tokens_at_once(subject),
            advance=advance,
        )


def sliding(subject: Subject, config: EvaluateConfig) -> Found:
    """The loss with overlapping windows, or with memories of several lengths."""
    if not _asked(subject, config, "sliding"):
        return
    texts, length = _texts(subject, config), subject.run.sequence_length
    if max(map(len, texts)) <= length:
        note(
            "sliding: no document read is longer than a row, so that every token has all of its "
            "document before it already; it is left out"
        )
        return
    read: dict[str, Any] = {
        "tokens_at_once": _tokens_at_once(subject),
        "units": subject.units,
    }
    trained = subject.model.config.mem_len if subject.architecture.remembers else 0
    if trained or (subject.architecture.remembers and config.sliding_memories):
        memories = config.sliding_memories or sorted(
            {n for n in (trained // 2, trained, 2 * trained, 4 * trained) if n}
        )
        with progress_of("sliding", work_by_memory(texts, memories)) as advance:
            yield from by_memory(
                subject.model,
                texts,
                memories,
                segment=config.sliding_segment or length,
                same_length=config.same_length,
                clamp_len=config.clamp_len,
                advance=advance,
                **read,
            )
        return
    for key in ("sliding_memories", "same_length", "clamp_len"):
        value = getattr(config, key)
        require(
            value is None or value == [],
            f"{key}={value} is for a model with a memory, and this one has none: leave it out",
        )
    strides = config.sliding_strides or sorted({max(1, length // n) for n in (2, 4, 8)})[::-1]
    if max(strides) >= length:
        raise UserError(
            f"sliding_strides={list(strides)}: each has to be below sequence_length={length}, "
            f"e.g. {length // 2}"
        )
    with progress_of("sliding", work_by_stride(texts, strides, length)) as advance:
        yield from by_stride(subject.model, texts, strides, window=length, advance=advance, **read)


REPORTS: dict[str, Callable[[Subject, EvaluateConfig], Found]] = {
    "by_context": context,
    "passkey": passkey,
    "sliding": sliding,
}
"""By their key in the result, in the order in which they are made."""


def _asked(subject: Subject, config: EvaluateConfig, name: str) -> bool:
    asked = bool(getattr(config, name))
    if asked and not subject.causal:
        note(f"{name} is about predicting what comes next, which this one was not trained for")
    return asked and subject.causal


def _texts(subject: Subject, config: EvaluateConfig) -> list[Tokens]:
    rows = subject.prepared.split(subject.split)
    count = min(len(rows), config.report_rows or len(rows))
    return read_texts(rows, count)


def _far(subject: Subject) -> int:
    """How many tokens a model may use: a row, doubled until it covers its memory too."""
    length = far = subject.run.sequence_length
    if subject.architecture.remembers:
        while far < length + subject.model.config.mem_len:
            far *= 2
    return min(far, int(subject.model.config.max_positions))


def _segment(subject: Subject, longest: int) -> int:
    """Tokens read at a time: all, unless there is a memory for those before."""
    remembers = subject.architecture.remembers and subject.model.config.mem_len
    return subject.run.sequence_length if remembers else longest


def _check_length(subject: Subject, key: str, length: int) -> None:
    most = subject.model.config.max_positions
    if length > most:
        raise UserError(f"{key}={length}: the model has positions for {most} tokens")


def _tokens_at_once(subject: Subject) -> int:
    return subject.run.trainer.micro_batch_tokens
