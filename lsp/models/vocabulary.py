"""What a config takes over from the run's tokenizer; needs no torch."""

from __future__ import annotations

from typing import Any

from lsp.core.errors import require


def settle_vocabulary(
    config: Any, default_size: int, vocab_size: int, special_ids: dict[str, int | None]
) -> None:
    """Completes a config, in place, with the vocabulary of a tokenizer.

    Args:
        config: With the published names `vocab_size`, `pad_token_id`, ….
        default_size: Of the vocabulary of a config that says nothing about it.
        vocab_size: Number of ids of the tokenizer.
        special_ids: The tokenizer's, by the field of the config; None leaves the config's, unless
            the vocabulary has no such id.

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
    for field, token_id in special_ids.items():
        own = getattr(config, field)
        if token_id is not None:
            setattr(config, field, token_id)
        elif isinstance(own, int) and own >= config.vocab_size:
            setattr(config, field, None)
