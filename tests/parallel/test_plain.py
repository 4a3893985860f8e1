"""The engine of one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from lsp.core.errors import UserError
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.plain import PlainEngine
from lsp.parallel.runtime import runtime
from lsp.training.config import AdafactorConfig, AdamWConfig, MuonConfig, OptimizerConfig
from lsp.training.optimizers import build_optimizers
from tests.training.tiny import batch, reformer

CONFIGS = [AdamWConfig(), AdafactorConfig(), MuonConfig()]


@contextmanager
def engine(config: OptimizerConfig, precision: str = "fp32") -> Iterator[PlainEngine]:
    torch.manual_seed(0)
    model = reformer()
    with runtime(ParallelismConfig(device="cpu")) as place:
        optimizers = build_optimizers(model, config)
        yield PlainEngine(model, optimizers, place, PrecisionConfig(name=precision), 1.0)


def step(made: PlainEngine, seed: int, scale: float = 1e-3):
    made.module.train()
    made.module.begin_micro_batch(seed, 0)
    made.forward_backward(batch(seed).tensors(), scale, last=True)
    return made.step()


def everything(made: PlainEngine) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in [*made.weights(), *made.optimizer_state()]}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_state_moves_to_another_engine_exactly(config):
    with engine(config) as first:
        for seed in range(3):
            step(first, seed)
        weights = {k: v.clone() for k, v in first.weights()}
        state = {k: v.clone() for k, v in first.optimizer_state()}
        step(first, 3)
        expected = everything(first)
    with engine(config) as second:
        second.module.load_state_dict(weights)
        second.load_optimizer_state(weights, state)
        step(second, 3)
        found = everything(second)
        # A copy: what was loaded is not what is trained.
        assert not any(v.data_ptr() == state[k].data_ptr() for k, v in second.optimizer_state())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_state_of_another_model_is_refused():
    state = {"decoder.weight/exp_avg": torch.zeros(1)}
    with engine(AdamWConfig()) as made, pytest.raises(UserError, match=r"decoder\.weight"):
        made.load_optimizer_state({}, state)


def test_precision_may_change_within_one_interpreter():
    for precision in ("fp32", "bf16", "fp32"):
        with engine(AdamWConfig(), precision) as made:
            assert step(made, 0).applied


def test_overflow_in_one_optimizer_skips_all():
    """With a loss scale: AdamW's gradients overflow, Muon's do not, and clipping mixes them."""
    with engine(MuonConfig()) as made:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        made.scaler = made.accelerator.scaler = scaler
        step(made, 0)
        before = everything(made)

        made.module.train()
        made.module.begin_micro_batch(1, 0)
        made.forward_backward(batch(1).tensors(), 1e-3, last=True)
        made.module.lm_head.decoder.weight.grad[0, 0] = torch.inf
        result = made.step()
        assert not result.applied
        assert all(torch.equal(v, before[k]) for k, v in everything(made).items())
        assert scaler.get_scale() == 512.0

        assert step(made, 2).applied
        assert all(v.isfinite().all() for v in everything(made).values())
        assert made.scaler_state()["scale"] == 512.0
        made.load_scaler_state({**made.scaler_state(), "scale": 2.0})
        assert scaler.state_dict()["scale"] == 2.0
