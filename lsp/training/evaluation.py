"""Loss of a model over a split, the same rows every time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lsp.core.batch import Batch
from lsp.data.batches import EvaluationBatches
from lsp.models.interface import LanguageModel
from lsp.parallel.collectives import sum_over_ranks

Forward = Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        loss_sum: Cross-entropy in nats, summed over the predicted tokens.
        count: How many were predicted.
        bytes_per_token: Of the split, to turn nats per token into bits per byte.
    """

    loss_sum: float
    count: int
    bytes_per_token: float

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return self.loss_sum / self.count if self.count else math.nan

    @property
    def bits_per_byte(self) -> float:
        return self.loss / math.log(2) / self.bytes_per_token

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


def evaluate(
    forward: Forward,
    model: LanguageModel,
    batches: EvaluationBatches,
    device: torch.device,
    bytes_per_token: float,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Adds up the loss over all batches and processes; every process must call it.

    A model that remembers reads each lane of contiguous batches from its first row on, with what
    it remembers of the lane alone; how much that is, is for the model's config to say, and may be
    more than in training.

    Args:
        forward: Loss sum and count of the tensors of a batch; an engine is one.
        model: What `forward` runs.
        batches: Of this process.
        device: Where the model is.
        bytes_per_token: Of the split.
        on_batch: Told (batches done, batches in all) after each.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    memories: dict[int, dict[str, torch.Tensor] | None] = {}
    with torch.no_grad():
        for index in range(len(batches)):
            batch: Batch = batches[index]
            model.recall(memories.pop(index, None))
            batch_sum, _ = forward(batch.to(device).tensors())
            if index + batches.groups < len(batches):
                memories[index + batches.groups] = model.remembered()
            loss_sum += batch_sum.double()
            count += int(batch.num_predicted)
            if on_batch is not None:
                on_batch(index + 1, len(batches))
    total_sum, total_count = sum_over_ranks([float(loss_sum), float(count)], device)
    return Evaluation(total_sum, int(total_count), bytes_per_token)
