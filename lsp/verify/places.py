"""Where a model makes vectors of the tokens of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Place:
    """A call of a module that embeds tokens.

    Attributes:
        module: Embeds them.
        call: Which of its calls in a forward pass.
        slots: Of each vector, the number of its token in all rows one after another, and their
            number where it is of none of them.
    """

    module: nn.Module
    call: int
    slots: torch.Tensor


Call = tuple[nn.Module, int]


def find_place(
    model: nn.Module, ids_BL: torch.Tensor, read: Callable[[torch.Tensor], None]
) -> Place:
    """The call that embeds the tokens of the rows.

    A model may move them about before, into rows of one document each or with positions first.
    Then it is asked for rows of two tokens only, which are the digits of each token's number.

    Args:
        model: Any.
        ids_BL: (B, L) the rows.
        read: Passes such rows through the model.
    """
    number = ids_BL.numel()
    numbers_BL = torch.arange(number, device=ids_BL.device).view_as(ids_BL)
    for call, ids in _calls(model, ids_BL, read).items():
        if torch.equal(ids, ids_BL):
            return Place(*call, numbers_BL)
    low, high = (_calls(model, torch.full_like(ids_BL, n), read) for n in (0, 1))
    found = {call: torch.zeros_like(ids) for call, ids in low.items()}
    for digit in range(number.bit_length()):
        for call, ids in _calls(model, (numbers_BL >> digit) & 1, read).items():
            if call in found and found[call].shape == ids.shape:
                found[call] |= ids << digit
    places = [
        Place(*call, slots.where(low[call] != high[call], number))
        for call, slots in found.items()
        if call in high and high[call].shape == slots.shape
    ]
    # Padding may be left out.
    place = max(places, key=lambda p: int(torch.isin(numbers_BL, p.slots).sum()), default=None)
    assert place is not None, f"no module of {type(model).__name__} embeds the tokens"
    assert (place.slots != number).any(), f"no module of {type(model).__name__} embeds the tokens"
    return place


def _calls(
    model: nn.Module, ids_BL: torch.Tensor, read: Callable[[torch.Tensor], None]
) -> dict[Call, torch.Tensor]:
    """What every call of a pass was given that made vectors of numbers, in order."""
    found: dict[Call, torch.Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        call = module, counts.get(module, 0)
        counts[module] = call[1] + 1
        given = next(iter((*args, *kwargs.values())), None)
        vectors = vectors_of(output)
        if (
            isinstance(given, torch.Tensor)
            and vectors is not None
            and given.dtype == torch.int64
            and vectors.dim() == 3
            and vectors.shape[:2] == given.shape
        ):
            found[call] = given.clone()

    hooks = [m.register_forward_hook(note, with_kwargs=True) for m in model.modules()]
    try:
        read(ids_BL)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def vectors_of(output: Any) -> torch.Tensor | None:
    """What a module gives, or the first of what it gives; None where these are no vectors."""
    first = output[0] if isinstance(output, tuple) and output else output
    if isinstance(first, torch.Tensor) and first.is_floating_point():
        return first
    return None
