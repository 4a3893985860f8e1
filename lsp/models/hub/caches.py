"""What a decoder remembers of its text, in the caches of `transformers`.

The prompt is read as any row is, with an empty cache; then tokens come one by one, and see whatever
is remembered without a mask. More than one at a time, behind others, would need masks of their own
where there is attention, and continues Mamba's states wrongly as published.
"""

from __future__ import annotations

from typing import Any

import torch

from lsp.core.errors import require
from lsp.models.hub import masks

BY_LENGTH = ("dynamic", "longrope")
"""Rotary positions that change for all tokens of a text when it gets longer."""


class Remembered:
    """What a decoder has read of one batch of texts.

    Attributes:
        length: Tokens of each.
        memory: What the published body made of them.
    """

    def __init__(self) -> None:
        self.length = 0
        self.memory: Any = None


def exact(hub: Any) -> bool:
    """Whether what a model remembers is what it makes of a text when it reads it again."""
    rotary = getattr(hub.model.config, "rope_parameters", None) or {}
    return bool(hub.row.cache) and rotary.get("rope_type") not in BY_LENGTH


def check_room(hub: Any, length: int) -> None:
    """Refuses a text that is longer than the model has positions.

    Raises:
        UserError: It is.
    """
    most = hub.config.max_positions
    require(
        length <= most,
        f"{length} tokens are more than the {most} positions of the model: shorten the prompt, or "
        "ask for fewer new tokens",
    )


def step(hub: Any, input_ids: torch.Tensor, read: Remembered) -> torch.Tensor:
    """Scores of the token after (B, T) more of a text: (B, V).

    Raises:
        UserError: The text is longer than the model has positions.
    """
    check_room(hub, read.length + input_ids.shape[1])
    for part in input_ids.split(1, dim=1) if read.length else (input_ids,):
        if hub.row.cache == "state":
            hidden_BTD = _each_text(hub, part, read)
        else:
            hidden_BTD, read.memory = _read(hub, part, read.length, read.memory)
        read.length += part.shape[1]
    scores_B1V: torch.Tensor = hub.head.scores(hidden_BTD[:, -1:])
    return scores_B1V[:, 0]


def _read(hub: Any, input_ids: torch.Tensor, past: int, memory: Any) -> tuple[torch.Tensor, Any]:
    """(B, T, D) hidden states, and the memory with these tokens."""
    name, body = hub.row.cache, hub.head.body
    if memory is None and name in ("past_key_values", "cache"):
        from transformers import DynamicCache

        memory = DynamicCache(config=body.config)
    more = {name: memory, **({"use_mems": True} if name == "mems" else {"use_cache": True})}
    if name == "cache":
        del more["use_cache"]  # which is not among its arguments
    if not past:
        output = hub.body_output(input_ids, **more)
    else:
        positions_B1 = torch.full_like(input_ids, past)
        with masks.following(body, positions_B1, hub.config.first_position) as given:
            if name == "cache":
                # XLM is told the whole text, and reads the end of it that it does not remember.
                input_ids = input_ids.expand(-1, past + 1)
                order_L = torch.arange(past + 1, device=input_ids.device)
                given["position_ids"] = order_L.expand_as(input_ids)
                given["attention_mask"] = torch.ones_like(input_ids)
            output = body(input_ids=input_ids, return_dict=True, **given, **more)
    return output[0], memory if name == "cache" else output[name]


def _each_text(hub: Any, input_ids: torch.Tensor, read: Remembered) -> torch.Tensor:
    """The same one text after another: RWKV's shifts mix those of a batch, as published."""
    memories = read.memory or [None] * len(input_ids)
    read_BTD = [
        _read(hub, ids_1T, read.length, memory)
        for ids_1T, memory in zip(input_ids.split(1), memories, strict=True)
    ]
    read.memory = [memory for _, memory in read_BTD]
    return torch.cat([hidden_1TD for hidden_1TD, _ in read_BTD])
