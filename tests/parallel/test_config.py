"""What a strategy becomes for DeepSpeed, and what is refused."""

from __future__ import annotations

import pytest
import torch

from lsp.core.errors import UserError
from lsp.parallel.config import STRATEGIES, ParallelismConfig, PrecisionConfig
from lsp.parallel.deepspeed_config import deepspeed_config, zero_stage
from lsp.parallel.prepare import prepare_engine
from lsp.parallel.runtime import check_precision, choose_device, runtime
from lsp.training.config import MuonConfig
from lsp.training.optimizers import build_optimizers
from tests.training.tiny import reformer


def config_of(strategy: str, precision: str = "fp32", **values):
    return deepspeed_config(
        ParallelismConfig(strategy=strategy, **values),
        PrecisionConfig(name=precision),
        micro_batch=3,
        world_size=4,
        gradient_clip=0.5,
    )


def test_nothing_is_left_to_silent_defaults():
    config = config_of("zero3", param_persistence_threshold=7)
    assert config["train_batch_size"] == 12
    assert config["gradient_clipping"] == 0.5
    assert config["gradient_accumulation_steps"] == 1
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["stage3_param_persistence_threshold"] == 7
    assert "bf16" not in config
    assert "fp16" not in config


@pytest.mark.parametrize(
    ("strategy", "precision", "stage"),
    [
        ("zero1", "fp32", 1),
        ("zero1", "bf16", 2),
        ("zero1", "fp16", 1),
        ("zero2", "bf16", 2),
        ("zero3", "bf16", 3),
    ],
)
def test_stage(strategy, precision, stage):
    config = config_of(strategy, precision)
    assert config["zero_optimization"]["stage"] == stage
    assert zero_stage(ParallelismConfig(strategy=strategy), PrecisionConfig(precision)) == stage


def test_bf16_adds_gradients_up_in_fp32_and_checks_them():
    config = config_of("zero2", "bf16")
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize(("scale", "power"), [(65536.0, 16), (1.0, 0), (1000.0, 9)])
def test_fp16_begins_at_a_power_of_two(scale, power):
    config = deepspeed_config(
        ParallelismConfig(strategy="zero2"),
        PrecisionConfig("fp16", initial_loss_scale=scale),
        micro_batch=1,
        world_size=1,
        gradient_clip=0.0,
    )
    assert config["fp16"]["initial_scale_power"] == power


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_zero_stage_of_a_strategy(strategy):
    expected = {"zero1": 1, "zero2": 2, "zero3": 3}.get(strategy, 0)
    assert ParallelismConfig(strategy=strategy).zero_stage == expected


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ParallelismConfig(strategy="zero4"), "parallelism.strategy=zero4"),
        (lambda: ParallelismConfig(device="tpu"), "parallelism.device=tpu"),
        (lambda: ParallelismConfig(timeout_seconds=0), "parallelism.timeout_seconds=0"),
        (lambda: PrecisionConfig(name="fp8"), "precision.name=fp8"),
        (lambda: PrecisionConfig(initial_loss_scale=-1.0), "precision.initial_loss_scale=-1"),
    ],
    ids=["strategy", "device", "timeout", "precision", "loss-scale"],
)
def test_refused(make, told):
    with pytest.raises(UserError, match=told):
        make()


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(ParallelismConfig()) == torch.device("cpu")
    with pytest.raises(UserError, match=r"parallelism\.device=cuda but torch finds no GPU"):
        choose_device(ParallelismConfig(device="cuda"))
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        check_precision(PrecisionConfig("fp16"), torch.device("cpu"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(ParallelismConfig()) == torch.device("cuda", 1)
    assert choose_device(ParallelismConfig(device="cpu")) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"LOCAL_RANK=2 but this machine has 2 GPU\(s\)"):
        choose_device(ParallelismConfig())


def test_zero_takes_adamw_alone():
    model, parallelism = reformer(), ParallelismConfig(strategy="zero2", device="cpu")
    with (
        runtime(ParallelismConfig(device="cpu")) as place,
        pytest.raises(UserError, match=r"only\s+optimizer=adamw can update"),
    ):
        prepare_engine(
            model,
            build_optimizers(model, MuonConfig()),
            place,
            parallelism,
            PrecisionConfig(),
            gradient_clip=0.0,
            micro_batch=1,
        )
