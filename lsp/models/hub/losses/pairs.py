"""Masked tokens, and whether two texts belong together or are in order.

Next-sentence prediction (BERT, 1810.04805, section 3.1) and sentence-order prediction (ALBERT,
1909.11942, section 3.1) differ in how the pairs are made, not for the model. A packed row may have
several pairs: each is judged by its own first token, as if it were alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.models.hub.losses.one_by_one import Tokens

CLASSES = 2


class PairHead(nn.Module):
    """Judges a pair where the published class does not: BERT's pooler and classifier.

    Args:
        config: Of the published model.
        pooler: Whether the published model lacks one.
    """

    def __init__(self, config: Any, *, pooler: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.pooler = nn.Linear(width, width) if pooler else None
        self.seq_relationship = nn.Linear(width, CLASSES)

    def forward(self, first_ND: torch.Tensor) -> torch.Tensor:
        """(N, 2) scores, from the first token's state or what the published pooler makes of it."""
        if self.pooler is not None:
            first_ND = torch.tanh(self.pooler(first_ND))
        scores_N2: torch.Tensor = self.seq_relationship(first_ND)
        return scores_N2


def parts(model: Any) -> dict[str, nn.Module]:
    """What a published model lacks to judge pairs, by the name it has in ours."""
    if _judges(model):
        return {}
    head = PairHead(model.config, pooler=getattr(model.base_model, "pooler", None) is None)
    head.apply(model._init_weights)
    return {"pair_head": head}


def loss(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss of tokens and pairs, and the number of predicted tokens.

    Published, the mean over tokens is added to the mean over pairs. Here the mean of a row's pairs
    is weighted with the number of tokens that the row predicts: dividing the sum by the count gives
    the same where all rows predict equally many, and never depends on which rows come together.

    Args:
        hub: The model.
        batch: As for every encoder, with `token_type_ids` (B, L), `pair_positions` (B, P) of the
            pairs' first tokens, `pair_labels` (B, P), -100 for pairs that are not there.
    """
    hidden_BLD, labels_BL = _states(hub, batch), batch["labels"]
    loss_sum, count = hub.head.loss(hidden_BLD, labels_BL, hub.memory)
    pair_labels_BP = batch["pair_labels"]
    places_BP1 = batch["pair_positions"].clamp(min=0)[..., None]
    first_BPD = hidden_BLD.gather(1, places_BP1.expand(-1, -1, hidden_BLD.shape[2]))
    losses_BP = F.cross_entropy(
        _judge(hub, first_BPD.flatten(0, 1)).float(),
        pair_labels_BP.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    ).view_as(pair_labels_BP)
    pairs_B = (pair_labels_BP != IGNORE_INDEX).sum(1).clamp(min=1)
    predicted_B = (labels_BL != IGNORE_INDEX).sum(1)
    return loss_sum + (losses_BP.sum(1) / pairs_B * predicted_B).sum(), count


def predict(hub: Any, batch: dict[str, torch.Tensor]) -> Tokens:
    """The masked tokens alone."""
    return Tokens(_states(hub, batch), batch["labels"])


def _states(hub: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    names = ("input_ids", "segment_ids", "position_ids", "token_type_ids")
    output = hub.body_output(**{name: batch[name] for name in names if name in batch})
    hidden_BLD: torch.Tensor = output[0]
    return hidden_BLD


def _judges(model: Any) -> bool:
    return hasattr(model, "sop_classifier") or hasattr(
        getattr(model, "cls", None), "seq_relationship"
    )


def _judge(hub: Any, first_ND: torch.Tensor) -> torch.Tensor:
    """(N, 2) scores of pairs, from the states of their first tokens."""
    model = hub.model
    base = model.base_model
    pooler: Any = getattr(base, "pooler", None)
    if isinstance(pooler, nn.Linear):  # of ALBERT and BigBird
        activation = getattr(base, "pooler_activation", None) or base.activation
        first_ND = activation(pooler(first_ND))
    elif pooler is not None:
        first_ND = pooler(first_ND[:, None])  # it takes the first of a row's states
    if not _judges(model):
        scores_N2: torch.Tensor = hub.pair_head(first_ND)
        return scores_N2
    head = getattr(model, "sop_classifier", None) or model.cls.seq_relationship
    out_N2: torch.Tensor = head(first_ND)
    return out_N2
