"""A row such as each objective gives, for trying a model."""

from __future__ import annotations

import torch

from lsp.core.batch import IGNORE_INDEX
from lsp.core.objectives import DECODER, NEXT_TOKEN, PAIRS

SPAN = 2
"""Tokens of the span that a question asks for."""


def example(
    objective: str, length: int, vocab_size: int, rows: int = 1, first_id: int = 0
) -> dict[str, torch.Tensor]:
    """The tensors of a batch by name, as `Batch.tensors` gives them: one document a row.

    Args:
        objective: What it is for.
        length: Positions of a row.
        vocab_size: Tokens are `first_id`, the next, …, again and again.
        rows: How many, each of other tokens.
        first_id: The first that may stand in a text.
    """
    number_BL = torch.arange(rows * length).view(rows, length)
    ids_BL = first_id + number_BL % (vocab_size - first_id)
    ones_BL = torch.ones_like(ids_BL)
    positions_BL = torch.arange(length).expand(rows, -1).contiguous()
    batch = {
        "input_ids": ids_BL,
        "labels": ids_BL.clone(),
        "segment_ids": ones_BL,
        "position_ids": positions_BL,
    }
    first_B1, nothing_BL = torch.zeros(rows, 1, dtype=torch.long), ids_BL * 0 + IGNORE_INDEX
    if objective in NEXT_TOKEN:
        batch["labels"] = torch.cat([ids_BL[:, 1:], nothing_BL[:, :1]], 1)
    elif objective in PAIRS:
        batch["token_type_ids"] = (positions_BL >= length // 2).long()
        batch["pair_positions"] = first_B1
        batch["pair_labels"] = torch.arange(rows)[:, None] % 2
    elif objective in DECODER:
        batch["decoder_input_ids"] = torch.cat([ids_BL[:, :1], ids_BL[:, :-1]], 1)
        batch["decoder_segment_ids"] = ones_BL
        batch["decoder_position_ids"] = positions_BL
    elif objective == "permutation":
        chosen_BL = positions_BL % 2 == 1
        batch["permutation"] = positions_BL.where(chosen_BL, -1)
        batch["labels"] = ids_BL.where(chosen_BL, IGNORE_INDEX)
    elif objective == "recurring_span":
        batch["labels"] = nothing_BL.clone()
        batch["labels"][:, 0] = SPAN
        batch["question_positions"] = first_B1
        batch["start_positions"], batch["end_positions"] = first_B1 + SPAN, first_B1 + 2 * SPAN - 1
    return batch
