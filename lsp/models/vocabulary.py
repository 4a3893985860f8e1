"""What a config takes over from the run's tokenizer; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsp.core.errors import require

ENDING = "_token_id"


def settle_vocabulary(
    config: Any, default_size: int, vocab_size: int, special_ids: Mapping[str, int | None]
) -> None:
    """Completes a config, in place, with the vocabulary of a tokenizer.

    Args:
        config: With the published names `vocab_size`, `pad_token_id`, ….
        default_size: Of the vocabulary of a config that says nothing about it.
        vocab_size: Number of ids of the tokenizer.
        special_ids: The tokenizer's, by their roles: `pad` is for the field `pad_token_id`. One
            that is missing leaves the config's, unless the vocabulary has no such id.

    Raises:
        UserError: The config's vocabulary is too small.
    """
    if config.vocab_size == default_size:
        config.vocab_size = vocab_size
    require(
        config.vocab_size >= vocab_size,
        f"vocab_size={config.vocab_size} is smaller than the tokenizer's {vocab_size}: "
        f"leave it out, or use {vocab_size} or more",
    )
    for field, own in vars(config).items():
        if not field.endswith(ENDING):
            continue
        token_id = special_ids.get(field.removesuffix(ENDING))
        if token_id is not None:
            setattr(config, field, token_id)
        elif isinstance(own, int) and own >= config.vocab_size:
            setattr(config, field, None)
