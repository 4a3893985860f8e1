"""Packed documents stay apart, no token sees the future, and what is given is checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsp.core.batch import IGNORE_INDEX, positions_from_segments
from lsp.core.errors import UserError
from lsp.models.longformer import Longformer
from lsp.models.longformer_config import LongformerConfig, resolve
from lsp.models.memory import MemoryConfig
from tests.training.tiny import LENGTH, longformer

torch.set_num_threads(1)

KINDS: dict[str, dict[str, Any]] = {
    "both ways": {},
    "causal": {"is_decoder": True},
    "global tokens": {"global_tokens": 2},
    "gaps": {"attention_dilation": [1, [2, 4]]},
    "causal with gaps": {"is_decoder": True, "attention_dilation": [2, 4]},
    "reversible": {"residual": "reversible", "global_tokens": 2},
    "reversible, causal": {"residual": "reversible", "is_decoder": True},
}


def loss_and_gradients(
    model: Longformer, ids: torch.Tensor, labels: torch.Tensor, segments: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss, _ = model(ids, labels, segments)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("kind", [k for k in KINDS if "gaps" not in k])
def test_packed_documents_are_as_alone(kind: str):
    """Values and gradients of a packed row are those of its documents one by one."""
    model = longformer(**KINDS[kind]).double()
    torch.manual_seed(0)
    ids, ends = torch.randint(4, 64, (1, LENGTH)), (11, 30, 57)
    labels, segments = ids.clone(), torch.zeros_like(ids)
    start = 0
    for number, end in enumerate(ends, start=1):
        segments[0, start:end] = number
        start = end
    labels[0, start:] = IGNORE_INDEX
    packed, packed_gradients = loss_and_gradients(model, ids, labels, segments)
    total, sums, start = 0.0, {}, 0
    for end in ends:
        part = slice(start, end)
        alone, gradients = loss_and_gradients(model, ids[:, part], labels[:, part], None)
        total += float(alone)
        sums = {n: g + sums.get(n, 0) for n, g in gradients.items()}
        start = end
    assert float(packed) == pytest.approx(total, rel=1e-6)
    for name, gradient in packed_gradients.items():
        used = gradient if "position_embeddings" not in name else gradient[2:]
        expected = sums[name] if "position_embeddings" not in name else sums[name][2:]
        torch.testing.assert_close(used, expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_do_not_see_each_other(kind: str):
    model = longformer(**KINDS[kind]).eval()
    ids = torch.randint(4, 64, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    segments = torch.ones_like(ids)
    segments[0, 24:] = 2
    positions = positions_from_segments(segments)
    before = model.logits(ids, segments, positions)
    changed = ids.clone()
    changed[0, 24:] = 5
    after = model.logits(changed, segments, positions)
    assert torch.equal(before[:, :24], after[:, :24])
    assert not torch.equal(before[:, 24:], after[:, 24:])


@pytest.mark.parametrize("kind", ["causal", "causal with gaps"])
def test_no_token_sees_the_future(kind: str):
    model = longformer(**KINDS[kind]).eval()
    ids = torch.randint(4, 64, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    before = model.logits(ids)
    changed = ids.clone()
    changed[0, 40] = (ids[0, 40] + 1) % 60 + 4
    after = model.logits(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 41:], after[:, 41:])


@pytest.mark.parametrize("residual", ["stored", "recomputed"])
def test_dropout_is_replayed(residual: str):
    """The recomputing backward drops what the forward dropped: same seed, same gradients."""
    values = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "global_tokens": 1}
    torch.manual_seed(0)
    model = longformer(residual, **values)
    torch.manual_seed(0)
    twin = longformer("stored", **values)
    ids = torch.randint(4, 64, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    results = []
    for each in (model, twin):
        each.begin_micro_batch(3)
        results.append(loss_and_gradients(each, ids, ids, None))
    (loss, gradients), (expected, expected_gradients) = results
    assert torch.equal(loss, expected)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    state = torch.get_rng_state()
    model.begin_micro_batch(3)
    model(ids, ids)
    assert torch.equal(torch.get_rng_state(), state)


def test_generation_step_continues():
    model = longformer(is_decoder=True).eval()
    ids = torch.randint(4, 64, (1, 10), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache()
    model.step(ids[:, :7], cache)
    scores = model.step(ids[:, 7:], cache)
    torch.testing.assert_close(scores, model.logits(ids)[:, -1])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"attention_window": 7}, r"attention_window=7 has to be an even number"),
        ({"attention_window": [8, 8]}, r"num_hidden_layers=12 of them"),
        ({"attention_dilation": [2]}, r"attention_dilation=\[2\] has to have num_hidden_layers=12"),
        ({"hidden_size": 770}, r"hidden_size=770 is not a multiple of num_attention_heads=12"),
        ({"is_decoder": True, "global_tokens": 1}, r"lets a causal model see later tokens"),
        ({"global_tokens": 1, "attention_dilation": [2] * 12}, r"cannot both be used"),
        ({"pad_token_id": 40000}, r"pad_token_id=40000 is not below vocab_size=30522"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        LongformerConfig(**values).validate()


def test_a_run_completes_the_config():
    given = LongformerConfig(attention_window=8, num_hidden_layers=2)
    done = resolve(
        given, vocab_size=300, sequence_length=96, objective="causal", special_ids={"pad": 0}
    )
    assert (done.vocab_size, done.max_position_embeddings, done.is_decoder) == (300, 97, True)
    assert done.max_positions == 96
    assert given.vocab_size == 30522
    with pytest.raises(UserError, match="sequence_length=97 is longer than the 96 positions"):
        done.check_length(97)
    small = LongformerConfig(vocab_size=200)
    with pytest.raises(UserError, match="vocab_size=200 is smaller than the tokenizer's 300"):
        resolve(small, vocab_size=300, sequence_length=96, objective="causal")
    gaps = LongformerConfig(attention_dilation=[2, 3], num_hidden_layers=2)
    with pytest.raises(UserError, match="sequence_length=64 is not a multiple of 6"):
        resolve(gaps, vocab_size=300, sequence_length=64, objective="causal")


def test_reversible_is_refused():
    with pytest.raises(
        UserError,
        match=r"memory=reversible is not possible .* auto or recomputed .*residual=reversible",
    ):
        Longformer(LongformerConfig(), MemoryConfig("reversible"))
