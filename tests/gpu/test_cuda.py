"""What runs on a CPU runs on a GPU unchanged, and computes the same."""

from __future__ import annotations

import pytest
import torch

from lsp.models.memory import MemoryConfig
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

LENGTH = 256


def _model(residual: str) -> Reformer:
    torch.manual_seed(0)
    config = ReformerConfig(
        attn_layers=["local", "lsh"] * 2,
        hidden_size=64,
        num_attention_heads=4,
        attention_head_size=16,
        feed_forward_size=128,
        axial_pos_shape=[16, 16],
        axial_pos_embds_dim=[16, 48],
        max_position_embeddings=LENGTH,
        is_decoder=True,
        num_hashes=2,
        hidden_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
    )
    return Reformer(config, MemoryConfig(residual)).train()


def _step(model: Reformer, device: str) -> tuple[float, dict[str, torch.Tensor]]:
    model.to(device)
    ids = torch.randint(0, 320, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    segments = torch.ones_like(ids)
    segments[:, 100:] = 2
    segments[1, 200:] = 0
    labels = ids.roll(-1, 1).masked_fill(segments == 0, -100)
    model.begin_micro_batch(3)
    loss_sum, count = model(ids.to(device), labels.to(device), segments.to(device))
    (loss_sum / count).backward()
    return float(loss_sum), {n: p.grad.cpu() for n, p in model.named_parameters()}


@pytest.mark.parametrize("residual", ["reversible", "recomputed", "stored"])
def test_a_step_equals_the_cpu(residual: str):
    expected_loss, expected = _step(_model(residual), "cpu")
    loss, gradients = _step(_model(residual), "cuda")
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, gradient in gradients.items():
        scale = expected[name].abs().max()
        assert (gradient - expected[name]).abs().max() <= 1e-4 * scale + 1e-7, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_low_precision_is_close(dtype: torch.dtype):
    expected_loss, _ = _step(_model("reversible"), "cuda")
    with torch.autocast("cuda", dtype):
        loss, gradients = _step(_model("reversible"), "cuda")
    assert loss == pytest.approx(expected_loss, rel=2e-2)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
