"""The special tokens that each objective needs beside those that every tokenizer has."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipelines.special_tokens import SENTINEL
from lsp.core.objectives import DECODER
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.span_corruption import sentinels_for

_ROLES = {
    "next_sentence": ("cls", "sep"),
    "sentence_order": ("cls", "sep"),
    "recurring_span": ("question",),
    "fill_in_the_middle": ("fim_prefix", "fim_middle", "fim_suffix"),
}
_ALWAYS = ("pad", "eos")


def special_roles(config: ObjectiveConfig, sequence_length: int) -> tuple[str, ...]:
    """Roles of the special tokens that the tokenizer has to have for an objective.

    Args:
        config: The objective.
        sequence_length: Tokens in the longest rows.
    """
    roles = _ROLES.get(config.name, ())
    if config.name == "span_corruption":
        count = sentinels_for(config, sequence_length)
        roles = tuple(f"{SENTINEL}{number}" for number in range(count))
    start = config.decoder_start_role
    if config.name in DECODER and start not in _ALWAYS:
        roles = (*roles, start)
    return roles


def with_decoder_start(config: ObjectiveConfig, special_ids: Mapping[str, int]) -> dict[str, int]:
    """The special tokens by role, with that of the token that a decoder's text begins with."""
    start = special_ids.get(config.decoder_start_role)
    if config.name not in DECODER or start is None:
        return dict(special_ids)
    return {**special_ids, "decoder_start": start}
