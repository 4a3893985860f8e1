"""Bytes of weights, gradients and optimizer state under every strategy."""

from __future__ import annotations

import pytest

from lsp.parallel.memory import SHARDINGS, host_bytes, state_bytes

MILLION = 10**6


def total(strategy: str, world_size: int = 8, precision: str = "bf16", **values) -> int:
    return sum(state_bytes(strategy, 1000 * MILLION, world_size, precision, **values).values())


def test_whole_model_in_fp32_takes_sixteen_bytes_a_parameter():
    expected = {"weights": 4_000_000, "gradients": 4_000_000, "optimizer state": 8_000_000}
    assert state_bytes("single", MILLION, 1, "fp32") == expected
    assert state_bytes("ddp", MILLION, 8, "bf16") == expected
    adafactor = state_bytes("ddp", MILLION, 8, "fp32", "Adafactor")
    assert adafactor == expected | {"optimizer state": 0}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_stage_and_every_offload_leaves_less(precision):
    whole = {n: total(n, precision=precision, bucket=0, live=0) for n in SHARDINGS}
    assert whole["single"] == whole["ddp"] > whole["zero1"] >= whole["zero2"] > whole["zero3"] > 0
    assert whole["zero2"] > whole["zero2_offload"] > whole["zero3_offload"] == 0


def test_sharded_bytes_fall_with_the_number_of_processes():
    at = {n: state_bytes("zero3", 100 * MILLION, n, "bf16", bucket=0, live=0) for n in (2, 16)}
    for kind in ("weights", "gradients", "optimizer state"):
        assert at[2][kind] == 8 * at[16][kind]


def test_what_leaves_the_device_is_on_the_host():
    assert host_bytes("zero2", MILLION, 4, "bf16") == 0
    # Masters, two moments, gradients twice in fp32; weights in bf16.
    assert host_bytes("zero2_offload", MILLION, 4, "bf16") == 250_000 * (5 * 4 + 2)
    assert state_bytes("zero3_offload", MILLION, 4, "bf16", live=0, bucket=0) == {
        "weights": 0,
        "gradients": 0,
        "optimizer state": 0,
    }
