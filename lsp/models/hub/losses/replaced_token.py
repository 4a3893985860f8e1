"""A small generator fills in masked tokens, the model tells which were replaced (2003.10555).

Both learn at the same time: the generator by the likelihood of the masked tokens, the model itself,
which is the discriminator, by telling at all positions whether a token is the generator's
(section 2). Nothing is differentiated through the sampling. Both share the tables of token,
position and token type embeddings (section 3.2).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import UserError, require
from lsp.models.hub.heads import PublishedHead
from lsp.models.hub.losses.one_by_one import Tokens, scored
from lsp.models.layers.dropout import derive_seed

DISCRIMINATOR_WEIGHT = 50.0
"""Of the discriminator's loss (appendix A)."""
FRACTION = 4
"""How many times the discriminator is as wide as ELECTRA's generator (section 3.2)."""
TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
NAMES = ("input_ids", "segment_ids", "position_ids")
SAMPLING = 1
"""Tells the random numbers of sampling from others of the same row."""


class Generator(nn.Module):
    """The published masked language model that fills in tokens, and its head.

    Args:
        model: Of `transformers`, made ready.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.head = PublishedHead(model, str(model.base_model_prefix))


def generator_of(model: Any, keys: Mapping[str, Any]) -> Any:
    """A published masked language model that shares the embeddings of a discriminator.

    Args:
        model: The discriminator, as published.
        keys: Of the generator's config, where it differs from its usual size: a quarter of the
            width for ELECTRA (section 3.2), half of the layers for DeBERTa (2111.09543,
            section 4.1).
    """
    from transformers import AutoModelForMaskedLM

    generator = AutoModelForMaskedLM.from_config(generator_config(model.config, keys))
    ours, theirs = model.base_model.embeddings, generator.base_model.embeddings
    for name in TABLES:
        setattr(theirs, name, getattr(ours, name))
    generator.tie_weights()
    return generator


def generator_config(config: Any, keys: Mapping[str, Any]) -> Any:
    """The generator's config: the discriminator's, but smaller.

    Raises:
        UserError: A key is not known, the width is no multiple of the number of heads, or the
            tables would have another width.
    """
    config = copy.deepcopy(config)
    if config.model_type == "electra":
        for key in ("hidden_size", "num_attention_heads", "intermediate_size"):
            setattr(config, key, max(1, getattr(config, key) // FRACTION))
    else:
        config.num_hidden_layers = max(1, config.num_hidden_layers // 2)
        # The tables are as wide as the discriminator, unless its config says otherwise.
        config.embedding_size = getattr(config, "embedding_size", config.hidden_size)
    tables = config.embedding_size
    for key, value in keys.items():
        if not hasattr(config, key):
            raise UserError(
                f"architecture.generator.{key} is no key of {config.model_type}; use e.g. "
                "hidden_size, num_hidden_layers, num_attention_heads, intermediate_size"
            )
        setattr(config, key, value)
    require(
        config.embedding_size == tables,
        f"architecture.generator.embedding_size={config.embedding_size}: the generator shares the "
        f"embeddings of the model, which are {tables} wide; leave it out",
    )
    require(
        config.hidden_size % config.num_attention_heads == 0,
        f"architecture.generator: hidden_size={config.hidden_size} is not a multiple of "
        f"num_attention_heads={config.num_attention_heads}; set both, e.g. num_attention_heads=1",
    )
    return config


def loss(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss of generator and discriminator, and the number of masked tokens.

    Published, the generator's mean over masked tokens is added to 50 times the discriminator's mean
    over all tokens. Here the latter is taken row by row, and weighted with the number of the row's
    masked tokens: dividing the sum by the count gives the same where all rows have equally many of
    both, and never depends on which rows come together.

    Args:
        hub: The model.
        batch: That of a masked objective.
    """
    labels_BL, head = batch["labels"], hub.generator.head
    guessed_BLD = hub.body_output(*(batch.get(name) for name in NAMES), head=head)[0]
    loss_sum, count = head.loss(guessed_BLD, labels_BL, hub.memory)
    inputs_BL = sampled(hub, batch["input_ids"], Tokens(guessed_BLD, labels_BL))
    was_BL = torch.where(labels_BL == IGNORE_INDEX, batch["input_ids"], labels_BL)
    with head.goes_on():
        scores_BL = discriminate(hub, batch | {"input_ids": inputs_BL})
    losses_BL = F.binary_cross_entropy_with_logits(
        scores_BL.float(), (inputs_BL != was_BL).float(), reduction="none"
    )
    kept_BL = batch["segment_ids"] != 0
    length_B = kept_BL.sum(1).clamp(min=1)
    predicted_B = (labels_BL != IGNORE_INDEX).sum(1)
    found_B = losses_BL.masked_fill(~kept_BL, 0.0).sum(1) / length_B
    return loss_sum + DISCRIMINATOR_WEIGHT * (found_B * predicted_B).sum(), count


def discriminate(hub: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, L) scores, above 0 where a token is likelier replaced than not."""
    output = hub.body_output(*(batch.get(name) for name in NAMES))
    scores_BL: torch.Tensor = hub.head.scores(output[0])
    return scores_BL.view(batch["input_ids"].shape)


@torch.no_grad()
def sampled(hub: Any, input_ids_BL: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """(B, L) the inputs with a token of the generator's in place of each masked one.

    One random number for every position decides, drawn row by row: the same whichever rows come
    together.
    """
    masked_BL = tokens.predicted
    draw_T = _uniform(hub, input_ids_BL)[masked_BL]
    ids_T = input_ids_BL[masked_BL]
    for part, scores_KV in scored(hub.generator.head, tokens):
        reached_KV = scores_KV.double().softmax(-1).cumsum(-1)
        goal_K1 = draw_T[part, None] * reached_KV[:, -1:]
        chosen_K = torch.searchsorted(reached_KV, goal_K1, right=True)[:, 0]
        ids_T[part] = chosen_K.clamp(max=scores_KV.shape[1] - 1)
    out_BL = input_ids_BL.clone()
    out_BL[masked_BL] = ids_T
    return out_BL


def _uniform(hub: Any, input_ids_BL: torch.Tensor) -> torch.Tensor:
    """(B, L) float64 in [0, 1): of the step and the row in training, else of the row's tokens."""
    rows, length = input_ids_BL.shape
    if hub.training and hub.rows_seed is not None:
        seed, first_row = hub.rows_seed
        seeds = [derive_seed(seed, SAMPLING, first_row + row) for row in range(rows)]
    else:
        place_L = torch.arange(1, length + 1, device=input_ids_BL.device)
        numbers = (input_ids_BL * place_L).sum(1).tolist()
        seeds = [derive_seed(number, SAMPLING) for number in numbers]
    drawn = [
        torch.rand(length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(drawn).to(input_ids_BL.device)


def token_losses(hub: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Refused: a discriminator has no score for each token of the vocabulary.

    Raises:
        UserError: Always.
    """
    raise UserError(
        "objective=replaced_token: the model tells tokens apart and predicts none, so there are no "
        "losses of single tokens; its validation loss is in metrics.jsonl"
    )
