"""What keeps the experts of a mixture equally busy: the routers' own losses.

Whether all experts have work is a property of a batch. Mixtral's and NLLB's loss is one over all
tokens of a micro-batch, as published: it depends on which rows are in it, unlike all other losses
here. That of the Switch Transformer looks at every row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from lsp.core.batch import IGNORE_INDEX
from lsp.models.hub.losses.one_by_one import Tokens

KINDS = ("mixtral", "switch_transformers", "nllb-moe")
"""Model types with routers."""


def loss(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of the next tokens and the routers' loss, and how many tokens.

    Args:
        hub: The model, a decoder.
        batch: `input_ids`, `labels`, `segment_ids`, `position_ids`, (B, L) each.
    """
    output = _output(hub, batch)
    loss_sum, count = hub.head.loss(output[0], batch["labels"], hub.memory)
    segments_BL = batch.get("segment_ids", torch.ones_like(batch["input_ids"]))
    predicted_B = (batch["labels"] != IGNORE_INDEX).sum(1)
    routers = router_loss(hub.model.config, output.router_logits, segments_BL != 0, predicted_B)
    return loss_sum + routers, count


def predict(hub: Any, batch: dict[str, torch.Tensor]) -> Tokens:
    """The next tokens alone."""
    return Tokens(_output(hub, batch)[0], batch["labels"])


def _output(hub: Any, batch: dict[str, torch.Tensor]) -> Any:
    names = ("input_ids", "segment_ids", "position_ids")
    return hub.body_output(*(batch.get(name) for name in names), output_router_logits=True)


def router_loss(
    config: Any, scores: Sequence[torch.Tensor], kept_BL: torch.Tensor, predicted_B: torch.Tensor
) -> torch.Tensor:
    """The loss of the routers of an encoder or a decoder, to be added to the summed loss.

    It is weighted with the number of predicted tokens, so that dividing the sum by their number
    gives the published loss.

    Args:
        config: Of the published model, which has the coefficients.
        scores: Of each router: (B, L, E), or the same with the first two dimensions as one.
        kept_BL: (B, L) what is not padding.
        predicted_B: (B,) how many tokens a row predicts.

    Returns:
        fp32 scalar.
    """
    if not scores:
        return torch.zeros((), device=kept_BL.device)
    # Rows that only fill up an evaluation are nobody's tokens.
    kept_BL = kept_BL & (predicted_B > 0)[:, None]
    if config.model_type == "switch_transformers":
        return _switch(config, scores, kept_BL, predicted_B)
    top_k = config.num_experts_per_tok if config.model_type == "mixtral" else 2
    balance = _balance([s.flatten(0, -2) for s in scores], top_k, kept_BL.flatten())
    return config.router_aux_loss_coef * balance * predicted_B.sum()


def _balance(scores: list[torch.Tensor], top_k: int, kept_T: torch.Tensor) -> torch.Tensor:
    """E times the sum of products of share of tokens and mean probability (2101.03961, (4)).

    All layers count as one, as published.
    """
    kept_T1 = kept_T[:, None].float()
    tokens_E = torch.zeros(scores[0].shape[-1], device=kept_T.device)
    probability_E = torch.zeros_like(tokens_E)
    for scores_TE in scores:
        probability_TE = scores_TE.softmax(-1).float()
        chosen_TE = torch.zeros_like(probability_TE).scatter_(
            1, probability_TE.topk(top_k, dim=-1).indices, 1.0
        )
        tokens_E = tokens_E + (chosen_TE * kept_T1).sum(0)
        probability_E = probability_E + (probability_TE * kept_T1).sum(0)
    count = (kept_T1.sum() * len(scores)).clamp(min=1)
    experts = scores[0].shape[-1]
    return (tokens_E / count * (probability_E / count)).sum() * experts


def _switch(
    config: Any, scores: Sequence[torch.Tensor], kept_BL: torch.Tensor, predicted_B: torch.Tensor
) -> torch.Tensor:
    """Row by row, all layers as one: balance, and the size of the scores (2202.08906, (5))."""
    rows, experts = kept_BL.shape[0], scores[0].shape[-1]
    scores_BTE = torch.cat([s.view(rows, -1, experts) for s in scores], dim=1).float()
    kept_BT1 = kept_BL.repeat(1, len(scores))[..., None].float()
    count_B1 = kept_BT1.sum(1).clamp(min=1)
    chosen_BTE = F.one_hot(scores_BTE.argmax(-1), experts).float()
    tokens_BE = (chosen_BTE * kept_BT1).sum(1) / count_B1
    probability_BE = (scores_BTE.softmax(-1) * kept_BT1).sum(1) / count_B1
    balance_B = (tokens_BE * probability_BE).sum(1) * experts
    sizes_BT = scores_BTE.logsumexp(-1) ** 2
    size_B = (sizes_BT * kept_BT1[..., 0]).sum(1) / count_B1[:, 0]
    loss_B = config.router_aux_loss_coef * balance_B + config.router_z_loss_coef * size_B
    return (loss_B * predicted_B).sum()
