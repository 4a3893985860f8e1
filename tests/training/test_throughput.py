"""Peaks and memory."""

import torch

from lsp.training.throughput import PEAK_TFLOPS, peak_memory_bytes, peak_tflops

CPU = torch.device("cpu")


def test_configured_peak_wins():
    assert peak_tflops(CPU, 123.0) == 123.0


def test_cpu_is_measured():
    measured = peak_tflops(CPU, 0.0)
    assert measured is not None
    assert 1e-4 < measured < 1e3


def test_gpu_is_looked_up(monkeypatch):
    for name, peak in (
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_tflops(torch.device("cuda"), 0.0) == PEAK_TFLOPS[peak]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Unheard Of 9000")
    assert peak_tflops(torch.device("cuda"), 0.0) is None


def test_peak_memory_counts_what_was_used_and_freed():
    before = peak_memory_bytes(CPU)
    block = torch.ones(2**25)
    grown = peak_memory_bytes(CPU)
    del block
    assert grown >= before
    assert peak_memory_bytes(CPU) >= grown > 2**27
