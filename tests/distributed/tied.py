"""A model whose head is its embedding."""

from __future__ import annotations

import torch
from torch import nn

from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.prepare import prepare_engine
from lsp.parallel.runtime import runtime
from lsp.training.config import AdamWConfig
from lsp.training.optimizers import build_optimizers


class Tied(nn.Module):
    """The least that an engine can train."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(1))

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.head(self.embedding(input_ids)) * self.scale
        return scores.logsumexp(-1).sum(), torch.tensor(input_ids.numel())


def tied(strategy: str) -> dict[str, torch.Tensor]:
    """Weights after a step."""
    parallelism = ParallelismConfig(strategy=strategy, device="cpu", param_persistence_threshold=0)
    with runtime(parallelism) as place:
        model = Tied()
        engine = prepare_engine(
            model,
            build_optimizers(model, AdamWConfig()),
            place,
            parallelism,
            PrecisionConfig(),
            gradient_clip=1.0,
            micro_batch=1,
        )
        engine.forward_backward({"input_ids": torch.arange(6)[None]}, 0.1, last=True)
        engine.step()
        return {name: value.clone() for name, value in engine.weights()}
