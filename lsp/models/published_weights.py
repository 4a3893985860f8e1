"""Whether the weights of a published folder are those that its config describes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lsp.core.errors import UserError


def check_weights(
    weights: Mapping[str, torch.Tensor],
    expected: Mapping[str, tuple[int, ...]],
    kind: str,
    keys: str,
) -> None:
    """Compares names and shapes.

    Args:
        weights: By our names.
        expected: Shapes by our names.
        kind: Of the model, in words.
        keys: Of the config, that decide which weights there are; for the message.

    Raises:
        UserError: A weight is missing, unknown or of another shape.
    """
    for verb, names in (
        ("lacks", sorted(expected.keys() - weights.keys())),
        ("has", sorted(weights.keys() - expected.keys())),
    ):
        if names:
            rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"the published folder {verb} {names[0]}{rest}, which {kind} of this config "
                f"{'needs' if verb == 'lacks' else 'does not have'}: compare {keys}"
            )
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise UserError(
                f"{name} is {tuple(weights[name].shape)} in the published folder, "
                f"but its config.json asks for {shape}"
            )
