"""What a training step allocates, from torch's own record, and whether a model foresees it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lsp.models.interface import LanguageModel

TOLERANCE = 0.1


def allocated(step: Callable[[], None], trace: Path) -> int:
    """Bytes of tensors at the peak of a step."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    profile.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def training_step(
    model: LanguageModel, rows: int, length: int, *, half: bool = False
) -> Callable[[], None]:
    """A forward and backward pass; the gradients it adds to are there already."""
    ids = torch.randint(3, 320, (rows, length))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        model.begin_micro_batch(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss, count = model(ids, ids)
        (loss / count).backward()

    return step


def assert_estimate_is_close(
    model: LanguageModel, rows: int, length: int, trace: Path, *, half: bool = False
) -> None:
    measured = allocated(training_step(model, rows, length, half=half), trace)
    parts = model.activation_bytes(rows, length, half=half)
    assert sum(parts.values()) == pytest.approx(measured, rel=TOLERANCE), parts
