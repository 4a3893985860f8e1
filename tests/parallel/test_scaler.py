"""The dynamic loss scale goes on where a checkpoint changes between torch's and DeepSpeed's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from lsp.parallel.plain import PlainEngine
from lsp.parallel.zero import ZeroEngine


def plain(scale: float) -> Any:
    return SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=scale))


def zero(scale: float) -> Any:
    scaler = DynamicLossScaler(
        init_scale=scale,
        scale_window=1000,
        min_scale=1,
        delayed_shift=1,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=True,
        dtype=torch.half,
    )
    return SimpleNamespace(zero=SimpleNamespace(loss_scaler=scaler))


@pytest.mark.parametrize(
    ("saved_by", "saved"), [(PlainEngine, plain), (ZeroEngine, zero)], ids=["plain", "zero"]
)
def test_scale_crosses(saved_by, saved):
    state = saved_by.scaler_state(saved(512.0))
    one, other = plain(2.0), zero(2.0)
    PlainEngine.load_scaler_state(one, state)
    ZeroEngine.load_scaler_state(other, state)
    assert one.scaler.get_scale() == 512.0
    assert other.zero.loss_scaler.cur_scale == 512.0
    assert "_growth_tracker" not in vars(other.zero.loss_scaler)


def test_precision_without_a_scale_takes_none():
    fixed = SimpleNamespace(zero=SimpleNamespace(loss_scaler=LossScaler(scale=1)))
    ZeroEngine.load_scaler_state(fixed, PlainEngine.scaler_state(plain(512.0)))
    ZeroEngine.load_scaler_state(fixed, ZeroEngine.scaler_state(zero(512.0)))
    assert fixed.zero.loss_scaler.cur_scale == 1
    PlainEngine.load_scaler_state(SimpleNamespace(scaler=None), {"cur_scale": 512.0})
