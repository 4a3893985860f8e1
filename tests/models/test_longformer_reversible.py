"""Two streams give the same gradients however they are kept, and keep nothing per layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsp.core.errors import UserError
from lsp.models.longformer import Longformer
from lsp.models.longformer_config import LongformerConfig
from lsp.models.memory import MemoryConfig
from tests.models.allocated import allocated, assert_estimate_is_close, training_step
from tests.models.test_longformer_memory import CASES, tiny
from tests.training.tiny import LENGTH

torch.set_num_threads(1)

KINDS: dict[str, dict[str, Any]] = {
    "both ways": {},
    "causal": {"is_decoder": True},
    "global tokens": {"global_tokens": 2},
    "gaps": {"attention_dilation": [1, [1, 2, 2, 4], 2]},
}
PIECES = {"attention_groups": 2, "tile_megabytes": 0.01, "head_tiles": 3}


def model_of(kind: str, memory: MemoryConfig, dropout: float) -> Longformer:
    torch.manual_seed(0)
    config = LongformerConfig(
        attention_window=8,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=3,
        vocab_size=64,
        max_position_embeddings=LENGTH + 2,
        residual="reversible",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **KINDS[kind],
    )
    return Longformer(config, memory).double()


def gradients(model: Longformer) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.randint(4, 64, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    segments = torch.ones_like(ids)
    segments[:, 25:], segments[1, 60:] = 2, 0
    state = torch.get_rng_state()
    model.begin_micro_batch(3)
    loss, _ = model(ids, ids, segments)
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["plain", "dropout"])
@pytest.mark.parametrize("pieces", [{}, PIECES], ids=["whole", "tiled"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_depend_on_what_is_kept(kind: str, pieces: Any, dropout: float):
    stored = gradients(model_of(kind, MemoryConfig("stored", **pieces), dropout))
    for residual in ("recomputed", "reversible"):
        model = model_of(kind, MemoryConfig(residual, measure_drift=True, **pieces), dropout)
        loss, found = gradients(model)
        torch.testing.assert_close(loss, stored[0])
        assert found.keys() == stored[1].keys()
        for name, gradient in stored[1].items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9, msg=name)
        drift = model.reversible_drift()
        assert drift is None if residual == "recomputed" else 0 <= drift < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_and_groups_of_heads_change_nothing(kind: str):
    whole = gradients(model_of(kind, MemoryConfig("reversible"), 0.0))
    loss, found = gradients(model_of(kind, MemoryConfig("reversible", **PIECES), 0.0))
    torch.testing.assert_close(loss, whole[0])
    for name, gradient in whole[1].items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9, msg=name)


def test_drift_in_single_precision_is_measured():
    model = model_of("both ways", MemoryConfig(), 0.0).float()
    assert model.memory.residual == "reversible"  # the leanest
    gradients(model)
    assert model.reversible_drift() is None
    model.measure_drift(True)
    gradients(model)
    assert 0 < model.reversible_drift() < 1e-5


def test_it_is_another_function_than_the_sequential_one():
    names = model_of("both ways", MemoryConfig(), 0.0).state_dict().keys()
    assert "longformer.encoder.layer.0.attention.LayerNorm.weight" in names
    assert "longformer.encoder.layer.0.attention.output.LayerNorm.weight" not in names
    with pytest.raises(UserError, match="residual=reverse is not known: did you mean 'reversible'"):
        LongformerConfig(residual="reverse")


@pytest.mark.parametrize(
    ("memory", "case"),
    [
        *(("reversible", c) for c in ("default", "odd length", "global tokens", "pieces", "bf16")),
        ("reversible", "vocabulary"),
        ("recomputed", "gaps"),
        ("stored", "pieces"),
    ],
)
def test_the_estimate_is_close(tmp_path, memory: str, case: str):
    changes = CASES[case] | {"residual": "reversible"}
    rows, length = changes.pop("rows", 1), changes.pop("length", 2048)
    half, pieces = changes.pop("half", False), changes.pop("memory", {})
    model = tiny(memory, length, pieces, changes)
    assert_estimate_is_close(model, rows, length, tmp_path / "trace", half=half)


def test_layers_take_no_memory(tmp_path):
    found = []
    for layers in (2, 6):
        changes = {"residual": "reversible", "num_hidden_layers": layers}
        model = tiny("reversible", 2048, {}, changes)
        found.append(allocated(training_step(model, 1, 2048), tmp_path / "trace"))
    assert found[1] < 1.05 * found[0]
