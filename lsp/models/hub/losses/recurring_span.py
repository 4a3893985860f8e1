"""Which other occurrence of a span stood where the question is (Splinter, 2101.00438, section 3).

Every question selects a start and an end among the positions of its own document.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lsp.core.batch import IGNORE_INDEX

NAMES = ("input_ids", "segment_ids", "position_ids")


def loss(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed mean of a question's two cross-entropies, and the number of questions.

    Args:
        hub: The model.
        batch: As for every encoder, with `question_positions`, `start_positions` and
            `end_positions` (B, Q), -100 for questions that are not there.
    """
    losses_BQ, _ = _questions(hub, batch)
    # A row without labels predicts nothing, whatever its questions.
    asked_BQ = (batch["start_positions"] != IGNORE_INDEX) & _asks(batch)[:, None]
    return losses_BQ[asked_BQ].sum(), (batch["labels"] != IGNORE_INDEX).sum()


@torch.no_grad()
def token_losses(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each question, in the order of `labels`, its loss and whether the span was found."""
    losses_BQ, hits_BQ = _questions(hub, batch)
    questions_BQ = batch["question_positions"]
    asked_BQ = (batch["start_positions"] != IGNORE_INDEX) & _asks(batch)[:, None]
    order_BQ = questions_BQ.masked_fill(~asked_BQ, batch["labels"].shape[1]).argsort(
        dim=1, stable=True
    )
    losses_BQ, hits_BQ, asked_BQ = (x.gather(1, order_BQ) for x in (losses_BQ, hits_BQ, asked_BQ))
    return losses_BQ[asked_BQ], hits_BQ[asked_BQ]


def _asks(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (batch["labels"] != IGNORE_INDEX).any(1)


def _questions(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, Q) losses, 0 for what is no question, and (B, Q) whether start and end are likeliest."""
    hidden_BLD = hub.body_output(*(batch.get(name) for name in NAMES))[0]
    questions_BQ = batch["question_positions"].clamp(min=0)
    segments_BL = batch["segment_ids"]
    own_BQ = segments_BL.gather(1, questions_BQ)
    other_BQL = segments_BL[:, None, :] != own_BQ[:, :, None]
    losses, hits = [], []
    ends = ("start_positions", "end_positions")
    both = hub.model.splinter_qass(hidden_BLD, questions_BQ)
    for scores_BQL, name in zip(both, ends, strict=True):
        scores_BQL = scores_BQL.float().masked_fill(other_BQL, torch.finfo(torch.float32).min)
        asked = (scores_BQL.transpose(1, 2), batch[name])
        losses.append(F.cross_entropy(*asked, ignore_index=IGNORE_INDEX, reduction="none"))
        hits.append(scores_BQL.argmax(-1) == batch[name])
    return torch.stack(losses).mean(0), torch.stack(hits).all(0)
