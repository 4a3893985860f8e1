"""Tokens predicted in a random order, from those before them in that order (XLNet, 1906.08237).

The content stream reads; the query stream knows where it is, but not what stands there, and
predicts (section 2.3). Only the last tokens of the order are predicted (section 2.3, "partial
prediction").
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from lsp.core.batch import IGNORE_INDEX
from lsp.models.hub.losses import one_by_one
from lsp.models.hub.losses.one_by_one import Tokens


def prepare(model: Any) -> None:
    """Has an XLNet's positions be of the kind of its weights: published, they are always float32.

    Args:
        model: Of transformers; others stay as they are.
    """
    if model.config.model_type != "xlnet":
        return
    body = model.base_model
    published = body.relative_positional_encoding

    def of_the_weights(*args: Any, **kwargs: Any) -> torch.Tensor:
        positions_LBD: torch.Tensor = published(*args, **kwargs)
        return positions_LBD.to(body.dtype)

    body.relative_positional_encoding = of_the_weights


def loss(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of the predicted tokens, and their number.

    A token that nothing can be seen of is as likely as any other: the published attention would
    show it all tokens, itself among them, where every one is masked.

    Args:
        hub: The model.
        batch: As for every encoder, with `permutation` (B, L): the rank of a predicted token in
            the order, -1 for tokens that all others see.
    """
    blind_BL, labels_BL = _blind(batch), batch["labels"]
    own = batch | {"labels": labels_BL.masked_fill(blind_BL, IGNORE_INDEX)}
    tokens = _predict(hub, own)
    # Under sharding the number of tiles has to be the same everywhere, and K is not.
    hidden_BKD = tokens.hidden
    rows, length, width = *labels_BL.shape, hidden_BKD.shape[2]
    tiles = hub.head.tiles(hidden_BKD.new_empty(()).expand(rows, length, width), hub.memory)
    missing = max(0, tiles - hidden_BKD.shape[1])  # no fewer positions than tiles
    hidden_BKD = F.pad(hidden_BKD, (0, 0, 0, missing))
    labels_BK = F.pad(tokens.labels, (0, missing), value=IGNORE_INDEX)
    loss_sum, count = hub.head.loss(hidden_BKD, labels_BK, hub.memory, tiles=tiles)
    blind = blind_BL.sum()
    return loss_sum + blind * math.log(hub.head.vocab_size), count + blind


def token_losses(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the predicted tokens, in the order of `labels`; see `LanguageModel.token_losses`."""
    losses_T, hits_T = one_by_one.token_losses(hub.head, _predict(hub, batch))
    blind_T = _blind(batch)[batch["labels"] != IGNORE_INDEX]
    uniform = math.log(hub.head.vocab_size)
    return losses_T.masked_fill(blind_T, uniform), hits_T & ~blind_T


def _blind(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, L) where something is predicted of which nothing is seen."""
    unseen_BLL = unseen(batch["permutation"], batch["segment_ids"])
    return (batch["labels"] != IGNORE_INDEX) & (unseen_BLL > 0).all(-1)


def _predict(hub: Any, batch: dict[str, torch.Tensor]) -> Tokens:
    """What the query stream is about to say, in the order of `labels`."""
    labels_BL = batch["labels"]
    places_BK, labels_BK = places(labels_BL)
    output = hub.body_output(
        batch["input_ids"],
        batch["segment_ids"],
        batch["position_ids"],
        # Of the kind of the weights, which they are multiplied with.
        perm_mask=unseen(batch["permutation"], batch["segment_ids"]).to(hub.model.dtype),
        target_mapping=mapping(places_BK, labels_BK, labels_BL.shape[1]).to(hub.model.dtype),
    )
    return Tokens(output[0], labels_BK)


def unseen(permutation_BL: torch.Tensor, segment_ids_BL: torch.Tensor) -> torch.Tensor:
    """`perm_mask`: (B, L, L), 1 where position i does not see position j.

    A token does not see those that come later in the order, nor itself: the content stream of the
    published model lets every token see itself all the same. Nobody sees other documents.
    """
    rank_BL1, rank_B1L = permutation_BL[:, :, None], permutation_BL[:, None, :]
    later_BLL = (rank_B1L >= 0) & (rank_B1L >= rank_BL1)
    other_BLL = segment_ids_BL[:, :, None] != segment_ids_BL[:, None, :]
    return (later_BLL | other_BLL).float()


def places(labels_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K) positions of the predicted tokens, and (B, K) labels; K is the most that a row has.

    Rows with fewer are filled up with positions of label -100.
    """
    predicted_BL = labels_BL != IGNORE_INDEX
    most = max(int(predicted_BL.sum(1).max()), 1)
    places_BK = (~predicted_BL).int().argsort(dim=1, stable=True)[:, :most]
    return places_BK, labels_BL.gather(1, places_BK)


def mapping(places_BK: torch.Tensor, labels_BK: torch.Tensor, length: int) -> torch.Tensor:
    """`target_mapping`: (B, K, L), 1 at each query's position."""
    asked_BK1 = (labels_BK != IGNORE_INDEX)[..., None]
    index_L = torch.arange(length, device=places_BK.device)
    return ((places_BK[..., None] == index_L) & asked_BK1).float()
