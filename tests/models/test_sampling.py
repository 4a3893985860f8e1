"""Choosing tokens: probabilities on logits made by hand, seeds, and the model's memory."""

import itertools
import math

import pytest
import torch

from lsp.core.errors import UserError
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from lsp.models.sampling import Sampling, generate_ids, next_token_probabilities

# Probabilities 0.4, 0.1, 0.3, 0.2, in no order.
LOGITS = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()


def probabilities(**options):
    return next_token_probabilities(LOGITS, Sampling(**options)).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.1, 0.3, 0.2]),
        ({"greedy": True}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [16 / 30, 1 / 30, 9 / 30, 4 / 30]),
        ({"temperature": 1e-4}, [1, 0, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 3}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"top_k": 9}, [0.4, 0.1, 0.3, 0.2]),
        ({"top_p": 0.35}, [1, 0, 0, 0]),
        ({"top_p": 0.45}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.75}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"top_p": 0.95}, [0.4, 0.1, 0.3, 0.2]),
        # Of the two that top_k leaves, the first has 4/7 of the probability.
        ({"top_k": 2, "top_p": 0.55}, [1, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.6}, [4 / 7, 0, 3 / 7, 0]),
        # At half the temperature the first has 16/30.
        ({"temperature": 0.5, "top_p": 0.53}, [1, 0, 0, 0]),
    ],
    ids=str,
)
def test_probabilities(options, expected):
    assert probabilities(**options) == pytest.approx(expected, abs=1e-7)


def test_ties_at_a_border_are_all_kept():
    logits = torch.tensor([1.0, 1.0, 1.0, 0.0])
    for options in ({"top_k": 2}, {"top_p": 0.4}):
        kept = next_token_probabilities(logits, Sampling(**options))
        assert kept.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_large_and_infinite_scores():
    logits = torch.tensor([1e5, -math.inf, 1e5 - 1])
    odds = next_token_probabilities(logits, Sampling())
    assert odds.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 0, 1 / (1 + math.e)], rel=1e-2)


def test_scores_that_are_not_numbers():
    with pytest.raises(UserError, match="not numbers"):
        next_token_probabilities(torch.tensor([0.0, math.nan]), Sampling())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be positive; greedy=true"),
        ({"top_k": -1}, "top_k=-1 must be 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.1}, "top_p=1.1 must be above 0"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
    ],
    ids=str,
)
def test_sampling_that_cannot_work(options, message):
    with pytest.raises(UserError, match=message):
        Sampling(**options)


def reformer(layers=("local", "lsh"), chunk=8, **changes):
    torch.manual_seed(0)
    config = ReformerConfig(
        attn_layers=list(layers),
        hidden_size=16,
        feed_forward_size=32,
        num_attention_heads=2,
        attention_head_size=8,
        axial_pos_shape=[8, 8],
        axial_pos_embds_dim=[4, 12],
        max_position_embeddings=64,
        local_attn_chunk_length=chunk,
        lsh_attn_chunk_length=chunk,
        num_buckets=4,
        vocab_size=40,
        is_decoder=changes.pop("is_decoder", True),
        initializer_range=0.5,
        **changes,
    )
    return Reformer(config).eval()


def continue_without_memory(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("layers", "chunk", "prompt", "count"),
    [
        (["local"] * 2, 8, 1, 40),
        (["local"] * 2, 8, 19, 30),
        (["local", "lsh"], 32, 1, 30),
        (["lsh", "lsh"], 32, 20, 12),
    ],
    ids=["local", "local long prompt", "lsh within a chunk", "lsh filling a chunk"],
)
def test_memory_changes_nothing_where_no_text_is_hashed(layers, chunk, prompt, count):
    model = reformer(layers, chunk)
    prompt = [(7 * n) % 40 for n in range(prompt)]
    tokens = list(generate_ids(model, prompt, max_new_tokens=count, greedy=True))
    assert tokens == continue_without_memory(model, prompt, count)
    assert len(set(tokens)) > 3


def test_a_seed_is_a_text():
    model = reformer()

    def text(**options):
        return list(generate_ids(model, [1, 2], max_new_tokens=20, **options))

    state = torch.get_rng_state()
    assert text(seed=3) == text(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    texts = [text(seed=seed, sample=sample) for seed in (0, 1) for sample in (0, 1)]
    assert all(left != right for left, right in itertools.combinations(texts, 2))


def test_tokens_come_as_often_as_they_are_likely():
    model = reformer()
    with torch.no_grad():
        odds = model.logits(torch.tensor([[5]]))[0, -1].double().softmax(-1)
    counts = torch.zeros(40)
    for sample in range(600):
        counts[next(generate_ids(model, [5], max_new_tokens=1, sample=sample))] += 1
    assert float((counts / 600 - odds).abs().max()) < 0.06


def test_eos_ends_the_text_and_is_not_in_it():
    model = reformer()
    tokens = list(generate_ids(model, [1], max_new_tokens=30, seed=1))
    ended = list(generate_ids(model, [1], max_new_tokens=30, seed=1, eos_id=tokens[10]))
    assert ended == tokens[: tokens.index(tokens[10])]


def test_the_text_ends_with_the_positions():
    tokens = list(generate_ids(reformer(), [1] * 60, max_new_tokens=30))
    assert len(tokens) == 4


@pytest.mark.parametrize(
    ("model", "prompt", "message"),
    [
        ({}, [], "prompt is empty"),
        ({}, [1] * 64, "prompt has 64 tokens, and the model reads at most 64"),
        ({}, [1, 40], "prompt has token 40, and the model knows 40"),
        ({"is_decoder": False}, [1], "fill in masked tokens, not to continue"),
    ],
    ids=["empty", "too long", "unknown token", "masked model"],
)
def test_prompts_that_cannot_be_continued(model, prompt, message):
    with pytest.raises(UserError, match=message):
        generate_ids(reformer(**model), prompt, max_new_tokens=1)
