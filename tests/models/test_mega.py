"""Packed documents stay apart, no token sees the future, and what is given is checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import UserError
from lsp.models.mega import Mega
from lsp.models.mega_config import MegaConfig, resolve
from lsp.models.memory import MemoryConfig
from tests.hub.tiny import shaken
from tests.training.tiny import LENGTH, mega

torch.set_num_threads(1)

KINDS: dict[str, dict[str, Any]] = {
    "both ways": {},
    "causal": {"is_decoder": True},
    "whole": {"use_chunking": False},
    "causal, whole": {"is_decoder": True, "use_chunking": False},
    "laplace": {"attention_activation": "laplace"},
    "laplace, causal": {"attention_activation": "laplace", "is_decoder": True},
    "relu2, simple": {"attention_activation": "relu2", "relative_positional_bias": "simple"},
    "simple, causal, whole": {
        "relative_positional_bias": "simple",
        "is_decoder": True,
        "use_chunking": False,
        "chunk_size": -1,
    },
    "truncated": {"truncation": 5, "bidirectional": True},
    "truncated, causal": {"truncation": 20, "is_decoder": True},
    "norms after, layernorm": {
        "normalize_before_mega": False,
        "normalize_before_ffn": False,
        "normalization_type": "layernorm",
    },
    "rmsnorm, no feed-forward, no dense": {
        "normalization_type": "rmsnorm",
        "use_normalized_ffn": False,
        "add_lm_hidden_dense_layer": False,
        "activation": "gelu_accurate",
    },
    "no affine, token types, untied": {
        "norm_affine": False,
        "add_token_type_embeddings": True,
        "tie_word_embeddings": False,
        "activation": "relu",
    },
}
TILED = MemoryConfig("recomputed", feed_forward_tiles=3, head_tiles=3, tile_megabytes=0.004)


def ids_of(rows: int = 1, length: int = LENGTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, 64, (rows, length), generator=generator)


def model(kind: str, memory: str = "auto", **values: Any) -> Mega:
    torch.manual_seed(0)
    return shaken(mega(memory, **KINDS[kind] | values)).train()


def loss_and_gradients(
    model: Mega, ids: torch.Tensor, labels: torch.Tensor, segments: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss, _ = model(ids, labels, segments)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_as_alone(kind: str):
    """Values and gradients of a packed row are those of its documents one by one.

    None of them begins where a chunk of the row does.
    """
    here = model(kind).double()
    ids, ends = ids_of(), (11, 30, 57)
    labels, segments = ids.clone(), torch.zeros_like(ids)
    start = 0
    for number, end in enumerate(ends, start=1):
        segments[0, start:end] = number
        start = end
    labels[0, start:] = IGNORE_INDEX
    packed, packed_gradients = loss_and_gradients(here, ids, labels, segments)
    total, sums, start = 0.0, {}, 0
    here.eval()  # a document alone has a length of its own, which training refuses
    for end in ends:
        part = slice(start, end)
        alone, gradients = loss_and_gradients(here, ids[:, part], labels[:, part], None)
        total += float(alone)
        sums = {n: g + sums.get(n, 0) for n, g in gradients.items()}
        start = end
    assert float(packed) == pytest.approx(total, rel=1e-6)
    for name, gradient in packed_gradients.items():
        # The loss itself is in fp32.
        torch.testing.assert_close(gradient, sums[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_do_not_see_each_other(kind: str):
    """Not a bit of a document's scores depends on another."""
    here = model(kind).eval()
    ids, segments = ids_of(), torch.ones(1, LENGTH, dtype=torch.long)
    segments[0, 24:] = 2
    before = here.logits(ids, segments)
    for part in (slice(0, 24), slice(24, LENGTH)):
        changed = ids.clone()
        changed[0, part] = (ids[0, part] + 7) % 60 + 4
        after = here.logits(changed, segments)
        others = torch.ones(LENGTH, dtype=torch.bool)
        others[part] = False
        assert torch.equal(before[:, others], after[:, others])
        assert not torch.equal(before[:, part], after[:, part])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "causal" in kind])
def test_no_token_sees_the_future(kind: str):
    here, ids = model(kind).eval(), ids_of()
    before = here.logits(ids)
    changed = ids.clone()
    changed[0, 40] = (ids[0, 40] + 1) % 60 + 4
    after = here.logits(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    # Averages bring it to every later token, but for where they are cut off.
    reach = 40 + KINDS[kind].get("truncation", LENGTH)
    assert (before != after).any(-1)[0, 40 : min(reach, LENGTH)].all()


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_in_tiles_is_stored(kind: str):
    stored = model(kind, "stored").double()
    tiled = Mega(stored.config, TILED).double()
    tiled.load_state_dict(stored.state_dict())
    ids = ids_of(2)
    segments = torch.ones_like(ids)
    segments[0, 21:], segments[1, 50:] = 2, 0
    labels = ids.masked_fill(segments == 0, IGNORE_INDEX)
    expected, expected_gradients = loss_and_gradients(stored, ids, labels, segments)
    loss, gradients = loss_and_gradients(tiled, ids, labels, segments)
    torch.testing.assert_close(loss, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", ["both ways", "laplace, causal", "relu2, simple"])
def test_gradients_are_finite_differences(kind: str):
    here = model(kind, "recomputed").double()
    ids = ids_of()
    segments = torch.ones_like(ids)
    segments[0, 21:] = 2

    def loss() -> torch.Tensor:  # in float64, where the model's own is fp32
        return F.cross_entropy(here.logits(ids, segments)[0], ids[0], reduction="sum")

    loss().backward()
    layer, parameters = "mega.layers.0.mega_layer.", dict(here.named_parameters())
    names = ["ema_gate.damping_factor", "ema_gate.decay_factor", "ema_gate.residual_weight"]
    names += ["ema_gate.ema_expansion_matrix", "ema_gate.kernel_projection_matrix"]
    names += ["qk_weight", "qk_bias", "mx_proj.weight", "norm.norm.scalar", "v_proj.bias"]
    names += [n.removeprefix(layer) for n in parameters if n.startswith(f"{layer}rel_pos_bias")]
    for name in names:
        parameter = parameters[layer + name]
        assert parameter.grad is not None
        weight, place, losses = parameter.detach().view(-1), parameter.numel() // 2, []
        for step in (1e-6, -2e-6):
            weight[place] += step
            with torch.no_grad():
                losses.append(float(loss()))
        weight[place] += 1e-6
        slope = (losses[0] - losses[1]) / 2e-6
        assert float(parameter.grad.view(-1)[place]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


DROPOUTS = {
    f"{key}_prob": 0.3
    for key in ("dropout", "hidden_dropout", "attention_probs_dropout", "nffn_activation_dropout")
}


@pytest.mark.parametrize("features", [False, True], ids=["numbers", "features"])
def test_dropout_is_replayed(features: bool):
    """The recomputing backward drops what the forward dropped: same seed, same gradients."""
    values = {**DROPOUTS, "use_feature_dropout": features}
    ids, results = ids_of(2), []
    for memory in ("stored", "recomputed"):
        here = model("both ways", memory, **values).double()
        here.begin_micro_batch(3)
        results.append(loss_and_gradients(here, ids, ids, None))
    (loss, gradients), (expected, expected_gradients) = results
    assert torch.equal(loss, expected)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-9, msg=name)
    state = torch.get_rng_state()
    here.begin_micro_batch(4)
    assert not torch.equal(here(ids, ids)[0], loss)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dropped_feature_is_dropped_in_the_whole_row():
    here = model("both ways", use_feature_dropout=True, hidden_dropout_prob=0.5)
    block = here.mega.parts()[0].mega_layer
    x = torch.randn(2, LENGTH, 40)
    memo = here.mega.memo(None, torch.zeros(2, LENGTH, 32))
    memo = type(memo)(memo.segment_ids, memo.layout, memo.groups, 5)
    tiles = (slice(0, 20), slice(20, LENGTH))
    out = torch.cat([block.drop(x[:, tile], 0.5, memo, 0, tile) for tile in tiles], dim=1)
    dropped = (out == 0).all(1)
    assert torch.equal((out == 0).any(1), dropped)
    assert 0.2 < dropped.float().mean() < 0.8
    assert not torch.equal(dropped[0], dropped[1])


def test_the_plan_counts_the_calls():
    here = Mega(model("both ways").config, TILED)
    plan = here.execution_plan(2, LENGTH)
    block, calls = here.mega.parts()[0].mega_layer, []
    block.mx_proj.register_forward_hook(lambda *_: calls.append(1))
    ids = ids_of(2)
    here(ids, ids)
    assert len(calls) == plan["attention 0"] > 1
    assert plan["feed_forward 1"] == plan["the head"] == 3


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"use_chunking": True}, r"use_chunking=true needs a chunk_size, and chunk_size=-1"),
        ({"is_decoder": True}, r"bidirectional=true averages over later tokens"),
        ({"shared_representation_size": 7}, r"shared_representation_size=7 is odd.* use 8"),
        ({"normalization_type": "batchnorm"}, r"batchnorm takes its statistics over all rows"),
        ({"normalization_type": "scalnorm"}, r"normalization_type.*scalenorm"),
        ({"attention_activation": "laplac"}, r"attention_activation.*laplace"),
        ({"truncation": 0}, r"truncation=0 has to be 1 or more, or null"),
        ({"pad_token_id": 40000}, r"pad_token_id=40000 is not below vocab_size=30522"),
        ({"dropout_prob": 1.0}, r"dropout_prob=1.0 has to be at least 0 and below 1"),
        (
            {"relative_positional_bias": "simple", "chunk_size": 4096},
            r"chunk_size=4096 is more than the max_positions=2048",
        ),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        MegaConfig(**values).validate()


def test_a_run_completes_the_config():
    given = MegaConfig(use_chunking=True, chunk_size=32)
    done = resolve(
        given, vocab_size=300, sequence_length=4096, objective="causal", special_ids={"pad": 7}
    )
    assert (done.vocab_size, done.max_positions, done.pad_token_id) == (300, 4096, 7)
    assert (done.is_decoder, done.bidirectional) == (True, False)
    assert given.bidirectional
    masked = resolve(given, vocab_size=300, sequence_length=64, objective="masked")
    assert (masked.is_decoder, masked.bidirectional, masked.length_multiple) == (False, True, 32)
    with pytest.raises(UserError, match="=100 is not a multiple of chunk_size=32: use 96 or 128"):
        resolve(given, vocab_size=300, sequence_length=100, objective="masked")
    simple = MegaConfig(relative_positional_bias="simple", max_positions=64)
    with pytest.raises(UserError, match=r"=65 is longer than max_positions=64.*=simple reaches"):
        resolve(simple, vocab_size=300, sequence_length=65, objective="masked")
    with pytest.raises(UserError, match=r"parallelism.sequence=2: .*one head of attention.* use 1"):
        done.check_shares(4096, 2)


def test_memory_that_it_does_not_have_is_refused():
    with pytest.raises(UserError, match="memory=reversible is not possible"):
        Mega(MegaConfig(), MemoryConfig("reversible"))
