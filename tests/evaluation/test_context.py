"""Loss by context length, on models that need so much context and no more."""

import math

import numpy as np
import pytest
import torch

from lsp.evaluation.context import (
    by_context,
    context_lengths,
    longest_that_fits,
    windows_of,
    work,
)
from lsp.evaluation.figures import Units
from tests.evaluation.known import Bigram, Periodic, Remembering
from tests.models import test_caches

VOCABULARY = 50
IDEALESS = math.log(VOCABULARY)


def measured(model, texts, lengths, segment=10**6, tokens_at_once=200):
    done = []
    found = list(
        by_context(
            model,
            texts,
            lengths,
            segment=segment,
            tokens_at_once=tokens_at_once,
            units=Units(2.0),
            advance=done.append,
        )
    )
    assert sum(done) == work(texts, lengths)
    return found


def counting(length, start=0):
    return (np.arange(start, start + length)) % VOCABULARY


@pytest.mark.parametrize(
    ("longest", "shortest", "lengths"),
    [
        (64, 8, [8, 16, 32, 64]),
        (96, 8, [12, 24, 48, 96]),
        (100, 8, [50, 100]),
        (64, 64, [64]),
        (6, 2, [6]),
    ],
    ids=str,
)
def test_lengths_are_halves(longest, shortest, lengths):
    assert context_lengths(longest, shortest) == lengths


@pytest.mark.parametrize("size", [64, 100, 127, 128, 200])
def test_every_length_predicts_the_same_tokens(size):
    text = np.arange(size)
    for context in context_lengths(64, 4):
        windows = windows_of(text, context, 64)
        assert all(len(window) == context for window in windows)
        targets = [int(token) for window in windows for token in window[context // 2 :]]
        assert targets == list(range(32, size // 32 * 32))


def test_where_the_last_token_suffices_no_context_helps():
    found = measured(Bigram(VOCABULARY), [counting(200), counting(90, 7)], [8, 16, 32, 64])
    assert {row["tokens"] for row in found} == {(192 - 32) + (64 - 32)}
    for row in found:
        assert row["loss"] == pytest.approx(0, abs=1e-6)
        assert row["accuracy"] == 1
    assert [(row["from"], row["to"]) for row in found] == [(4, 7), (8, 15), (16, 31), (32, 63)]


def test_where_16_tokens_are_needed_the_step_is_there():
    text = np.random.default_rng(0).permutation(VOCABULARY)[:16]
    found = measured(Periodic(VOCABULARY, 16), [np.tile(text, 20)], [8, 16, 32, 64])
    losses = {row["context"]: row["loss"] for row in found}
    assert losses[8] == losses[16] == pytest.approx(IDEALESS)
    assert losses[32] == losses[64] == pytest.approx(0, abs=1e-6)
    assert found[0]["bits_per_byte"] == pytest.approx(IDEALESS / math.log(2) / 2)


def test_between_two_lengths_some_tokens_see_enough():
    """Of a context of 16 a token sees 8 to 15 tokens: 12 are seen by those that see 12 or more."""
    text = np.random.default_rng(0).permutation(VOCABULARY)[:12]
    found = measured(Periodic(VOCABULARY, 12), [np.tile(text, 30)], [16])
    assert found[0]["loss"] == pytest.approx(IDEALESS / 2, rel=1e-6)


@pytest.mark.parametrize(("memory", "unknown"), [(64, 0), (16, 14 / 32), (0, 1)], ids=str)
def test_a_memory_reaches_beyond_the_segment(memory, unknown):
    """Segments of 16, and 24 tokens that are needed: with 16 remembered, the last 9 have them."""
    text = np.random.default_rng(0).permutation(VOCABULARY)[:24]
    model = Remembering(VOCABULARY, 24, memory)
    found = measured(model, [np.tile(text, 20)], [8, 16, 32, 64], segment=16)
    losses = {row["context"]: row["loss"] for row in found}
    assert losses[8] == losses[16] == pytest.approx(IDEALESS)
    assert losses[64] == pytest.approx(unknown * IDEALESS, abs=1e-6)
    assert (losses[32] < IDEALESS) is (memory > 0)


def test_no_text_is_long_enough():
    texts = [counting(40), counting(3)]
    assert longest_that_fits(64, 8, texts) == 32
    assert longest_that_fits(64, 64, texts) is None
    assert longest_that_fits(64, 8, []) is None


def test_a_real_model_is_given_nothing_else():
    """The loss of the tokens of one window equals that of the window alone."""
    model = test_caches.longformer()
    text = np.random.default_rng(1).integers(0, test_caches.VOCABULARY, 64)
    (row,) = measured(model, [text], [32], tokens_at_once=70)
    total = 0.0
    for stop in (32, 48, 64):
        window = torch.from_numpy(text[stop - 32 : stop])[None]
        with torch.no_grad():
            scores = model.logits(window)[0, 15:-1]
        total += float(torch.nn.functional.cross_entropy(scores, window[0, 16:], reduction="sum"))
    assert row["tokens"] == 48
    assert row["loss"] == pytest.approx(total / 48, rel=1e-5)
