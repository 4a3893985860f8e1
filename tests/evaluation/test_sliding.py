"""Sliding evaluation: every token once, with as much before it as was asked for."""

import math

import numpy as np
import pytest
import torch

from lsp.evaluation.figures import Units
from lsp.evaluation.sliding import (
    by_memory,
    by_stride,
    memory_of,
    settings,
    work_by_memory,
    work_by_stride,
)
from lsp.models.transformer_xl import TransformerXL
from lsp.models.transformer_xl_config import TransformerXLConfig
from tests.evaluation.known import Bigram, Periodic, Remembering

VOCABULARY = 50
IDEALESS = math.log(VOCABULARY)


def strided(model, texts, strides, window=32):
    done = []
    found = list(
        by_stride(
            model,
            texts,
            strides,
            window=window,
            tokens_at_once=100,
            units=Units(1.0),
            advance=done.append,
        )
    )
    assert sum(done) == work_by_stride(texts, strides, window)
    return found


def remembered(model, texts, memories, **options):
    done = []
    found = list(
        by_memory(
            model,
            texts,
            memories,
            segment=16,
            tokens_at_once=64,
            units=Units(1.0),
            advance=done.append,
            **options,
        )
    )
    assert sum(done) == work_by_memory(texts, memories)
    return found


def repeated(back, size, seed=0):
    return np.tile(np.random.default_rng(seed).permutation(VOCABULARY)[:back], size)[:size]


@pytest.mark.parametrize("sizes", [[200], [1, 2, 31, 32, 33], [65, 100]], ids=str)
def test_every_token_but_the_first_is_predicted_once(sizes):
    texts = [np.arange(size) % VOCABULARY for size in sizes]
    for row in strided(Bigram(VOCABULARY), texts, [31, 16, 5, 1]):
        assert row["tokens"] == sum(sizes) - len(sizes)
        assert row["accuracy"] == 1


def test_a_smaller_stride_shows_more():
    """20 tokens are needed, and a window has 32: those at places 1 to 19 of a text lack them."""
    found = strided(Periodic(VOCABULARY, 20), [repeated(20, 200)], [31, 16, 12, 4])
    missing = [round(row["loss"] / IDEALESS * 199) for row in found]
    assert [row["context"] for row in found] == [1, 16, 20, 28]
    assert missing[2:] == [19, 19]
    # Of the 16 that each of the 10 windows after the first predicts, the first 4 lack some; the
    # last window is moved back to the end, and predicts 8 that lack none.
    assert missing[1] == 19 + 4 * 10
    assert missing[0] > missing[1]


def test_memories_reach_as_far_as_they_are_long():
    texts = [repeated(20, 300), repeated(20, 50, seed=1)]
    found = remembered(Remembering(VOCABULARY, 20, 99), texts, [8, 16, 32])
    assert [row["tokens"] for row in found] == [299 + 49] * 3
    losses = [row["loss"] / IDEALESS for row in found]
    # With all of it only the first 19 of each stream are unknown: 300 tokens are one stream.
    assert losses[2] == pytest.approx(2 * 19 / 348)
    assert losses[0] > losses[1] > losses[2]


def test_a_long_text_is_read_in_several_streams():
    model = Remembering(VOCABULARY, 20, 99)
    (row,) = remembered(model, [repeated(20, 16 * 16 * 3 + 1)], [64])
    assert row["loss"] == pytest.approx(IDEALESS * 3 * 19 / (16 * 16 * 3))
    assert {shape[0] for shape in model.read} == {3}


def test_a_transformer_xl_that_remembers_all_has_read_all():
    """Segments of 16 with a memory as long as the text: the loss of one pass over all of it."""
    torch.manual_seed(0)
    config = TransformerXLConfig(
        vocab_size=VOCABULARY,
        cutoffs=[20],
        d_model=16,
        d_embed=16,
        n_head=2,
        d_head=8,
        d_inner=24,
        n_layer=3,
        div_val=2,
        mem_len=8,
        clamp_len=-1,
        same_length=False,
        init_std=0.3,
        dropout=0.0,
    )
    model = TransformerXL(config).eval()
    text = np.random.default_rng(0).integers(0, VOCABULARY, 90)
    short, long = remembered(model, [text], [8, 96])
    tokens = torch.from_numpy(text)[None]
    with torch.no_grad():
        whole = model(tokens[:, :-1], tokens[:, 1:])
    assert long["tokens"] == int(whole[1]) == 89
    assert long["loss"] == pytest.approx(float(whole[0]) / 89, rel=1e-5)
    assert abs(short["loss"] - long["loss"]) > 1e-3
    # Nor does a position see more where all see equally many.
    (same,) = remembered(model, [text], [96], same_length=True, clamp_len=4)
    assert abs(same["loss"] - long["loss"]) > 1e-4


def test_settings_are_those_of_before_afterwards():
    model = Remembering(VOCABULARY, 20, 7)
    model.config.same_length, model.config.clamp_len = False, 5

    def fail():
        with settings(model.config, clamp_len=9, same_length=None), memory_of(model, 30):
            assert (model.config.same_length, model.config.clamp_len) == (False, 9)
            assert model.mem_len == 30
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (model.config.clamp_len, model.mem_len) == (5, 7)
