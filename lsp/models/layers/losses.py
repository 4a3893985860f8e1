"""Language-model head and cross-entropy, tile by tile over the sequence.

The scores of all positions, (L × V), never exist. Gradients of a tile are computed right after
its loss, while its scores are at hand, and only scaled in the backward pass (as Liger Kernel's
fused linear cross-entropy, 2410.10989, section 3.2, does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.models.layers.tied import WaitingGradient, WaitingGradients
from lsp.models.layers.tiling import Autocast, ParameterGradients, tile_spans


class LanguageModelHead(nn.Linear):
    """Projection onto the vocabulary; with labels, straight to the loss.

    Attributes:
        waiting: Where the weight is the embedding's too: what keeps its gradient for that.
    """

    waiting: WaitingGradient | None = None

    def learned(self) -> list[torch.Tensor]:
        """What the loss is differentiated by."""
        if self.waiting is None:
            return list(self.parameters())
        return [self.waiting.anchor, *(p for p in self.parameters() if p is not self.weight)]

    def forward(  # type: ignore[override]
        self, hidden_BLD: torch.Tensor, labels_BL: torch.Tensor | None = None
    ) -> Any:
        """Scores, or the loss.

        Args:
            hidden_BLD: (B, L, D) final hidden states.
            labels_BL: (B, L) targets, -100 where nothing is predicted.

        Returns:
            Without labels the scores (B, L, V). With labels the summed cross-entropy (fp32
            scalar) and the number of predicted positions (int64 scalar).
        """
        weight = self.weight if self.waiting is None else self.waiting.of(self.weight)
        logits_BLV = F.linear(hidden_BLD, weight, self.bias)
        if labels_BL is None:
            return logits_BLV
        loss_sum = F.cross_entropy(
            logits_BLV.flatten(0, 1).float(),
            labels_BL.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
        return loss_sum, (labels_BL != IGNORE_INDEX).sum()


def tiled_loss(
    fn: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    labels_BL: torch.Tensor,
    tiles: int,
    parameters: Iterable[torch.Tensor],
    waiting: WaitingGradient | WaitingGradients | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds up a loss over tiles of the sequence.

    Args:
        fn: `fn(*inputs, labels, index)` of one tile: from (B, K, D) inputs, (B, K) labels and the
            number of the tile to the summed loss (scalar). It is called once per tile, and
            differentiated on the spot where gradients are needed.
        inputs: (B, L, D) each.
        labels_BL: (B, L) targets, -100 where nothing is predicted.
        tiles: How many; they need not divide L.
        parameters: What `fn` learns. Their gradients arrive once, in the backward pass.
        waiting: What `fn` keeps gradients in, if anything.

    Returns:
        The loss summed over predicted positions (fp32 scalar), and their number (int64 scalar).
    """
    count = (labels_BL != IGNORE_INDEX).sum()
    spans = tile_spans(labels_BL.shape[1], tiles)
    learned = [p for p in parameters if p.requires_grad]
    if torch.is_grad_enabled() and (learned or any(x.requires_grad for x in inputs)):
        anchor = torch.empty(0, device=labels_BL.device, requires_grad=True)
        return _TiledLoss.apply(anchor, fn, labels_BL, spans, learned, waiting, *inputs), count
    total = torch.zeros((), dtype=torch.float32, device=labels_BL.device)
    for index, span in enumerate(spans):
        total += fn(*(x[:, span] for x in inputs), labels_BL[:, span], index).float()
    return total, count


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        fn: Callable[..., torch.Tensor],
        labels_BL: torch.Tensor,
        spans: list[slice],
        learned: list[torch.Tensor],
        waiting: WaitingGradient | WaitingGradients | None,
        *inputs: torch.Tensor,
    ) -> torch.Tensor:
        ctx.waiting = waiting
        needed = [i for i in range(len(inputs)) if ctx.needs_input_grad[6 + i]]
        ctx.grads = [torch.empty_like(x) if i in needed else None for i, x in enumerate(inputs)]
        ctx.gradients = ParameterGradients(learned)
        autocast = Autocast(labels_BL.device.type)
        total = torch.zeros((), dtype=torch.float32, device=labels_BL.device)
        for index, span in enumerate(spans):
            last = index == len(spans) - 1
            # The last tile's graph is kept until the backward pass; a copy of its inputs lets go
            # of the whole ones.
            leaves = [
                (x[:, span].detach().clone() if last else x[:, span].detach()).requires_grad_(
                    i in needed
                )
                for i, x in enumerate(inputs)
            ]
            with torch.enable_grad(), autocast():
                loss = fn(*leaves, labels_BL[:, span], index)
            total += loss.detach().float()
            if last:
                ctx.last_loss, ctx.last_span = loss, span
                ctx.last_leaves = [leaves[i] for i in needed]
                break
            wanted = [leaves[i] for i in needed]
            grads = ctx.gradients.collect([loss], [None], wanted)
            for i, grad in zip(needed, grads, strict=True):
                ctx.grads[i][:, span] = 0 if grad is None else grad
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.last_loss is None:
            raise RuntimeError("a tiled loss can be differentiated once per forward pass")
        span, leaves = ctx.last_span, iter(ctx.last_leaves)
        ctx.gradients.scale(grad_total)
        if ctx.waiting is not None:
            ctx.waiting.scale(grad_total)
        ctx.gradients.release([ctx.last_loss], [grad_total.to(ctx.last_loss.dtype)])
        for grad in ctx.grads:
            if grad is None:
                continue
            grad[:, : span.start].mul_(grad_total)
            last_grad = next(leaves).grad
            grad[:, span] = 0 if last_grad is None else last_grad
        grads, ctx.grads = ctx.grads, None
        ctx.last_loss = ctx.last_leaves = ctx.gradients = ctx.waiting = None
        return None, None, None, None, None, None, *grads
