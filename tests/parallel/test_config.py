"""What a strategy becomes for DeepSpeed, and what is refused."""

from __future__ import annotations

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from lsp.core.errors import UserError
from lsp.parallel.config import STRATEGIES, OffloadConfig, ParallelismConfig, PrecisionConfig
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
    expected = int(strategy[4]) if strategy.startswith("zero") else 0
    offload = OffloadConfig(nvme_path="x")
    assert ParallelismConfig(strategy=strategy, offload=offload).zero_stage == expected


def test_what_is_offloaded():
    zero = config_of("zero2_offload")["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert zero["offload_optimizer"]["pin_memory"] is False
    assert "offload_param" not in zero

    zero = config_of("zero3_offload", offload=OffloadConfig(pin_memory=True))["zero_optimization"]
    for part in ("offload_optimizer", "offload_param"):
        assert zero[part]["device"] == "cpu"
        assert zero[part]["pin_memory"] is True

    zero = config_of("zero3_offload", offload=OffloadConfig(weights=False))["zero_optimization"]
    assert "offload_param" not in zero

    offload = OffloadConfig(nvme_path="/disk", queue_depth=3, buffer_size=5)
    config = config_of("zero3_nvme", offload=offload)
    zero = config["zero_optimization"]
    assert (
        zero["offload_optimizer"] | {"device": "nvme", "nvme_path": "/disk"}
        == (zero["offload_optimizer"])
    )
    assert zero["offload_param"]["buffer_size"] == 5
    assert config["aio"]["queue_depth"] == 3


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name.startswith("zero")])
def test_deepspeed_knows_every_key(strategy):
    config = (
        config_of(strategy, model_persistence_threshold=5, offload=OffloadConfig(nvme_path="x"))
        if strategy.startswith("zero3")
        else config_of(strategy)
    )
    zero = config["zero_optimization"]
    known = DeepSpeedZeroConfig(**zero).model_dump(by_alias=True)
    for key, value in zero.items():
        if not isinstance(value, dict):
            assert known[key] == value, key


def test_further_keys_are_passed_on():
    config = config_of("zero3", zero={"memory_efficient_linear": False})
    assert config["zero_optimization"]["memory_efficient_linear"] is False
    for key, value in (("stage", 2), ("round_robin_gradients", True)):
        with pytest.raises(UserError, match=rf"parallelism\.zero\.{key} would replace"):
            config_of("zero3", zero={key: value})


def test_communication_may_have_another_format():
    assert config_of("zero2", communication_dtype="bf16")["communication_data_type"] == "bf16"
    assert "communication_data_type" not in config_of("zero2")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ParallelismConfig(strategy="zero4"), "parallelism.strategy=zero4"),
        (lambda: ParallelismConfig(device="tpu"), "parallelism.device=tpu"),
        (lambda: ParallelismConfig(timeout_seconds=0), "parallelism.timeout_seconds=0"),
        (lambda: ParallelismConfig(sub_group_size=0), "parallelism.sub_group_size=0"),
        (lambda: ParallelismConfig(max_live_parameters=-1), "parallelism.max_live_parameters=-1"),
        (lambda: ParallelismConfig(communication_dtype="int8"), "communication_dtype=int8"),
        (lambda: ParallelismConfig(strategy="zero3_nvme"), "offload.nvme_path=/local_nvme"),
        (lambda: OffloadConfig(queue_depth=0), "parallelism.offload.queue_depth=0"),
        (lambda: OffloadConfig(max_in_cpu=-1), "parallelism.offload.max_in_cpu=-1"),
        (lambda: PrecisionConfig(name="fp8"), "precision.name=fp8"),
        (lambda: PrecisionConfig(initial_loss_scale=-1.0), "precision.initial_loss_scale=-1"),
    ],
    ids=lambda told: told if isinstance(told, str) else "",
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
