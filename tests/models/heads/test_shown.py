"""Attention maps and hidden states: in the published layouts, and those that the model uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsp.models.heads.registry import build_head
from lsp.models.layers import attention_maps
from lsp.models.layers.sliding_window import dilated_window_attention
from lsp.models.longformer_config import LongformerConfig
from lsp.models.memory import MemoryConfig
from tests.models.heads.published import (
    IDS,
    PUBLISHED,
    SHAPES,
    inputs_for,
    labels_for,
    ours_of,
    published,
)

ASKED = {"output_attentions": True, "output_hidden_states": True}


def assert_same_shown(ours: Any, theirs: Any) -> None:
    for name in ("hidden_states", "attentions", "global_attentions"):
        expected = getattr(theirs, name, None)
        if expected is None:
            assert getattr(ours, name) is None
            continue
        assert isinstance(getattr(ours, name), tuple)
        for got, want in zip(getattr(ours, name), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("rows", ["whole", "padded", "odd length", "short"])
@pytest.mark.parametrize(("architecture", "task"), PUBLISHED, ids=IDS)
def test_as_published(architecture: str, task: str, rows: str):
    theirs = published(architecture, task).eval()
    ours = ours_of(theirs, task).eval()
    length = {"odd length": 27, "short": 14}.get(rows, 32)
    inputs = inputs_for(architecture, task, padded=rows == "padded", length=length)
    out, expected = ours(**inputs, **ASKED), theirs(**inputs, **ASKED)
    assert_same_shown(out, expected)
    if rows == "whole" and architecture == "longformer":
        windows = [weights.shape[-1] for weights in out.attentions]
        shown = 0 if out.global_attentions is None else out.global_attentions[0].shape[-1]
        assert windows == [shown + 4 + 1, shown + 8 + 1]


def test_longformer_global_tokens_anywhere():
    theirs = published("longformer", "token_classification").eval()
    ours = ours_of(theirs, "token_classification").eval()
    inputs = inputs_for("longformer", "token_classification", padded=True, rows=3, length=29)
    seen = torch.zeros_like(inputs["input_ids"])
    seen[0, [0, 7, 20]], seen[1, 3] = 1, 1  # none in the last row
    given = inputs | {"global_attention_mask": seen}
    assert_same_shown(ours(**given, **ASKED), theirs(**given, **ASKED))


@pytest.mark.parametrize("memory", ["stored", "recomputed", "reversible"])
@pytest.mark.parametrize("architecture", ["longformer", "reformer"])
def test_looking_changes_nothing(architecture: str, memory: str):
    """In training, with dropout: the same loss, and gradients as without."""
    values = {} if architecture == "longformer" else {"lsh_attention_probs_dropout_prob": 0.1}
    config = ours_of(published(architecture, "sequence_classification"), "sequence_classification")
    config.config.hidden_dropout_prob = 0.1
    for name, value in values.items():
        setattr(config.config, name, value)
    if architecture == "longformer":
        config.config.residual = "reversible" if memory == "reversible" else "sequential"
    torch.manual_seed(0)
    model = build_head(config.config, "sequence_classification", memory=MemoryConfig(memory))
    inputs = inputs_for(architecture, "sequence_classification", padded=True)
    labels = torch.tensor([1, 0])
    results = []
    for asked in ({}, ASKED):
        torch.manual_seed(5)
        model.begin_micro_batch(3)
        out = model(**inputs, labels=labels, **asked)
        out.loss.backward()
        results.append([out.loss.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad()
    for plain, looked in zip(*results, strict=True):
        assert (plain is None) == (looked is None)
        assert plain is None or torch.equal(plain, looked)
    assert len(out.hidden_states) == len(out.attentions) + 1 == 3


def test_longformer_shown_can_be_learned_from():
    model = ours_of(published("longformer", "masked_lm"), "masked_lm")
    out = model(**inputs_for("longformer", "masked_lm"), **ASKED)
    (out.attentions[1].square().sum() + out.hidden_states[1].square().sum()).backward()
    assert model.backbone.longformer.embeddings.word_embeddings.weight.grad.any()


def test_packed_documents_are_apart_in_the_maps():
    model = ours_of(published("longformer", "masked_lm"), "masked_lm").eval()
    ids = inputs_for("longformer", "masked_lm")["input_ids"]
    segments = torch.tensor([[1] * 12 + [2] * 20, [1] * 32])
    seen = torch.zeros_like(ids)
    seen[0, [3, 15]] = 1
    given = {"segment_ids": segments, "global_attention_mask": seen}
    out = model(ids, **given, **ASKED)
    for near, far in zip(out.attentions, out.global_attentions, strict=True):
        assert not near[0, :, 12:, 0].any()
        assert not near[0, :, :12, 1].any()
        assert not far[0, :, 12:, 0].any()
        assert not far[0, :, :12, 1].any()
        torch.testing.assert_close(far[0].sum(1), torch.ones(2, 2))


def test_gaps_and_causal_windows_weigh_what_attention_does():
    """With one-hot values, what attention gives is its weights."""
    torch.manual_seed(0)
    length, gaps = 12, [1, 3]
    q, k = torch.randn(2, 1, 2, length, 4)
    values = torch.eye(length).expand(1, 2, length, length)
    span = {"before": 2, "after": 0}
    dense = torch.zeros(1, 2, length, length)
    for start in range(0, length, 4):  # values as wide as the heads
        part = values[..., start : start + 4]
        dense[..., start : start + 4] = dilated_window_attention(q, k, part, gaps, **span)
    got = attention_maps.window_map(q, k, gaps=gaps, **span)
    for head, gap in enumerate(gaps):
        for query in range(length):
            for place in range(3):
                key = query + (place - 2) * gap
                want = dense[0, head, query, key] if key >= 0 else 0.0
                assert got[0, head, query, place] == pytest.approx(float(want), abs=1e-6)


def test_reformer_cache_as_published():
    theirs = published("reformer", "causal_lm").eval()
    ours = ours_of(theirs, "causal_lm").eval()
    inputs = inputs_for("reformer", "causal_lm", length=27)
    with torch.no_grad():
        got = ours(**inputs, use_cache=True).past_buckets_states
        want = theirs(**inputs, use_cache=True).past_buckets_states
    pairs = zip(want.buckets_cache, want.states_cache, strict=True)
    for (buckets, states), (want_buckets, want_states) in zip(got, pairs, strict=True):
        assert torch.equal(buckets, want_buckets)
        torch.testing.assert_close(states, want_states, rtol=1e-4, atol=1e-5)


def test_wide_windows_have_no_dense_map():
    """A map is as large as the window, not as the row."""
    config = LongformerConfig.from_dict(SHAPES["longformer"] | {"max_position_embeddings": 2000})
    model = build_head(config, "masked_lm").eval()
    with torch.no_grad():
        out = model(torch.randint(3, 30, (1, 1500)), output_attentions=True)
    assert [weights.shape for weights in out.attentions] == [(1, 2, 1500, 5), (1, 2, 1500, 9)]


def test_labels_are_given_with_what_is_shown():
    model = ours_of(published("longformer", "question_answering"), "question_answering")
    inputs = inputs_for("longformer", "question_answering")
    out = model(**inputs, **labels_for("question_answering", inputs["input_ids"]), **ASKED)
    assert out.keys() == [
        "loss",
        "start_logits",
        "end_logits",
        "hidden_states",
        "attentions",
        "global_attentions",
    ]
    assert out[0] is out.loss
    assert out["loss"] is out.loss
    assert dict(**out)["start_logits"] is out.start_logits
    with pytest.raises(KeyError):
        out["logits"]
