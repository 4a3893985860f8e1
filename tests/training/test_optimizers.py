"""Which parameter is updated how."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lsp.core.errors import UserError
from lsp.training.config import (
    AdafactorConfig,
    AdamWConfig,
    MuonConfig,
    OptimizerConfig,
    TrainerConfig,
)
from lsp.training.optimizers import PEAK, build_optimizers, set_learning_rate
from tests.training.tiny import batch, reformer

CONFIGS = [AdamWConfig, AdafactorConfig, MuonConfig]


def groups_of(config: OptimizerConfig, model: nn.Module) -> list[dict]:
    return [group for o in build_optimizers(model, config) for group in o.param_groups]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_every_parameter_is_in_one_group(config):
    model = reformer()
    members = [id(p) for group in groups_of(config(), model) for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_frozen_parameters_are_left_out(config):
    model = reformer()
    model.reformer.embeddings.requires_grad_(False)
    members = {id(p) for group in groups_of(config(), model) for p in group["params"]}
    assert members == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_only_matrices_decay(config):
    for group in groups_of(config(weight_decay=0.5), reformer()):
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.5 if parameter.ndim >= 2 else 0.0)


def test_muon_takes_the_matrices_of_the_layers():
    model = reformer()
    muon, adamw = build_optimizers(model, MuonConfig())
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    others = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert hidden == {
        n for n in names.values() if ".layers." in n and n.endswith("dense.weight")
    } | {n for n in names.values() if ".self_attention." in n}
    assert "reformer.embeddings.word_embeddings.weight" in others
    assert any(name.startswith("lm_head") for name in others)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_learning_rate_is_a_fraction_of_each_peak(config):
    groups = groups_of(config(), reformer())
    peaks = [group[PEAK] for group in groups]
    assert set_learning_rate(groups, 0.25) == peaks[0] / 4
    assert [group["lr"] for group in groups] == [peak / 4 for peak in peaks]
    set_learning_rate(groups, 1.0)  # of the peak, not of what it was before
    assert [group["lr"] for group in groups] == peaks


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)
def test_loss_falls(config):
    torch.manual_seed(0)
    model = reformer()
    optimizers = build_optimizers(model, config())
    tensors = batch(0).tensors()
    losses = []
    for step in range(15):
        model.train()
        model.begin_micro_batch(step)
        loss_sum, count = model(**tensors)
        (loss_sum / count).backward()
        losses.append(float(loss_sum.detach() / count))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1


def test_unknown_config_is_a_bug():
    with pytest.raises(TypeError):
        build_optimizers(reformer(), OptimizerConfig())


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (AdamWConfig, {"learning_rate": 0.0}),
        (AdamWConfig, {"weight_decay": -1.0}),
        (AdamWConfig, {"beta2": 1.0}),
        (AdamWConfig, {"epsilon": 0.0}),
        (AdafactorConfig, {"beta2_decay": 0.5}),
        (AdafactorConfig, {"clip_threshold": 0.0}),
        (MuonConfig, {"momentum": 1.5}),
        (MuonConfig, {"ns_steps": 0}),
        (MuonConfig, {"adamw_learning_rate": 0.0}),
        (TrainerConfig, {"max_steps": -3}),
        (TrainerConfig, {"log_every": 0}),
        (TrainerConfig, {"gradient_clip": -1.0}),
        (TrainerConfig, {"micro_batch_tokens": 0}),
        (TrainerConfig, {"max_nonfinite": 0}),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "-".join(v),
)
def test_config_refuses(config, values):
    ((key, value),) = values.items()
    with pytest.raises(UserError, match=f"{key}={value}"):
        config(**values)
