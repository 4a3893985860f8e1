"""Attention within documents on CUDA: every kernel gives what a mask of all scores gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsp.models.hub import kernels
from lsp.models.hub.attention import documents, each_document, whole_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.mark.parametrize("attend", [each_document, kernels.flex, kernels.varlen])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 100])
def test_kernels_agree(attend: Any, causal: bool, window: int | None) -> None:
    if window is not None and not causal:
        pytest.skip("windows are of causal models")
    if attend is kernels.varlen:
        pytest.importorskip("flash_attn")
    segments = torch.zeros(2, 700, dtype=torch.long, device="cuda")
    for row, ends in enumerate(((130, 400, 650), (700,))):
        for number, (start, stop) in enumerate(zip((0, *ends), ends, strict=False), 1):
            segments[row, start:stop] = number
    given = documents(segments, causal)
    torch.manual_seed(0)
    shapes = [(2, 8, 700, 64), (2, 2, 700, 64), (2, 2, 700, 64)]
    xs = [torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes]
    doubles = [x.detach().double().requires_grad_() for x in xs]
    real = (segments != 0)[:, None, :, None]
    out = attend(*xs, given, 0.125, 0.0, window) * real
    expected = whole_rows(*doubles, given, 0.125, 0.0, window) * real
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    weights = torch.randn(out.shape, device="cuda")
    found = torch.autograd.grad((out * weights).sum(), xs)
    wanted = torch.autograd.grad((expected * weights).sum(), doubles)
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), other, rtol=5e-2, atol=5e-2)
