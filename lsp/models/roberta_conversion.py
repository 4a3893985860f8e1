"""A RoBERTa (1907.11692) made into a Longformer of a greater length (2004.05150, section 5).

Both have the same modules. The positions are repeated, so that they are as before within each
stretch of the short model's length, and tokens that see everything begin with the projections of
the others. Where a window covers the whole of a short row, the result is the same model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch

from lsp.core.errors import UserError, require
from lsp.models import longformer_config
from lsp.models.longformer_config import LongformerConfig
from lsp.models.longformer_weights import from_published

MODEL_TYPE = "roberta"
ATTENTION_WINDOW = 512
"""The paper's, for every layer."""

NAMES = (
    (re.compile(r"^roberta\."), "longformer."),
    (re.compile(r"(\.attention\.self\.(?:query|key|value))\."), r"\1_global."),
)
"""From RoBERTa's names to those of the Longformer, and from local projections to global ones."""

POSITIONS = "longformer.embeddings.position_embeddings.weight"

_OWN = {"attention_window", "attention_dilation", "global_tokens", "is_decoder", "residual"}
_SHARED = {field.name for field in dataclasses.fields(LongformerConfig)} - _OWN
IGNORED_KEYS = longformer_config.IGNORED_KEYS | {"is_decoder", "add_cross_attention"}
"""Keys of RoBERTa's `config.json` that are checked, or say nothing about the model."""


def shared_values(published: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the `config.json` of a RoBERTa says about the same model as a Longformer.

    Returns:
        Values for `LongformerConfig.from_dict`, and the keys that were left out.

    Raises:
        UserError: The model is one that no Longformer can be made from.
    """
    require(
        not published.get("is_decoder"),
        "is_decoder=true: a causal RoBERTa cannot become a Longformer, whose tokens see both "
        "sides; name one that was trained with masks (RobertaForMaskedLM)",
    )
    kind = published.get("position_embedding_type", "absolute")
    require(
        kind == "absolute",
        f"position_embedding_type={kind} cannot be made longer: only absolute can",
    )
    # What an old file leaves out is as RoBERTa has it, and this is where the defaults differ.
    values = {"vocab_size": 50265} | {k: v for k, v in published.items() if k in _SHARED}
    end = values.get("eos_token_id", 2)
    values.setdefault("sep_token_id", end if isinstance(end, int) else None)
    return values, sorted(set(published) - _SHARED - IGNORED_KEYS)


def lengthened(
    short: LongformerConfig, sequence_length: int, attention_window: int | list[int]
) -> LongformerConfig:
    """The config with positions for longer rows, and with windows.

    Raises:
        UserError: The length is not greater than before, or the windows cannot work.
    """
    require(
        short.max_positions >= 1,
        f"max_position_embeddings={short.max_position_embeddings} leaves no position beside the "
        f"first {short.first_position}, which no token has",
    )
    require(
        sequence_length > short.max_positions,
        f"sequence_length={sequence_length} is not longer than the {short.max_positions} positions "
        f"that the model has already: use more, such as {8 * short.max_positions}",
    )
    long = dataclasses.replace(
        short,
        attention_window=attention_window,
        max_position_embeddings=short.first_position + sequence_length,
    )
    long.validate()
    return long


def long_weights(
    state_dict: Mapping[str, torch.Tensor], short: LongformerConfig, long: LongformerConfig
) -> dict[str, torch.Tensor]:
    """The weights of a RoBERTa, ready for `Longformer(long).load_state_dict`.

    Only the positions are new memory.

    Args:
        state_dict: Under RoBERTa's names.
        short: What describes them, as a Longformer's.
        long: `lengthened(short, …)`.

    Raises:
        UserError: A weight is missing, unknown or of another shape than the config says.
    """
    if not any(name.startswith("lm_head.") for name in state_dict):
        raise UserError(
            "the RoBERTa has no language-model head (lm_head): name a folder that "
            "RobertaForMaskedLM was saved to"
        )
    (prefix, ours), (local, global_) = NAMES
    weights = {prefix.sub(ours, name): weight for name, weight in state_dict.items()}
    weights |= {local.sub(global_, n): w for n, w in weights.items() if local.search(n)}
    weights = from_published(weights, short)
    weights[POSITIONS] = _repeated(weights[POSITIONS], short.first_position, long.max_positions)
    return weights


def _repeated(short_PD: torch.Tensor, first: int, positions: int) -> torch.Tensor:
    """The rows that no token has, once, and the others over and over: (first + positions, D)."""
    unused, learned = short_PD[:first], short_PD[first:]
    times = -(-positions // len(learned))
    return torch.cat([unused, learned.repeat(times, 1)[:positions]])
