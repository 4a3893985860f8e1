"""How fast and how full: tokens per second, model FLOPs utilisation, peak memory."""

from __future__ import annotations

import resource
import sys
import time

import torch

# Dense peaks in TFLOP/s from the vendors' data sheets: bf16 or fp16 with fp32 accumulation.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "V100": 125.0,
    "T4": 65.0,
}


def peak_tflops(device: torch.device, configured: float) -> float | None:
    """Peak of the device in TFLOP/s: as configured, from the table, or measured on a CPU.

    A CPU has no meaningful data-sheet value, so the peak is what a large matrix product reaches
    on it now; utilisation there reads as "share of the time that matrix products would take".
    """
    if configured:
        return configured
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
    return _measured_cpu_tflops()


def _measured_cpu_tflops(size: int = 768, rounds: int = 5) -> float:
    a = torch.ones(size, size)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: of the allocator on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
