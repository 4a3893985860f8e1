"""Special tokens that only some objectives need, by their roles.

`bytes`, `bpe`, `unigram` and `word` get those that are asked for, after the rest of their
vocabulary; any other tokenizer has its own, or is refused. A role is `cls`, `sep`, `question`,
`fim_prefix`, …, or `sentinel_0`, `sentinel_1`, … in the order in which they stand for spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from data_pipelines.config import SPECIAL_TOKENS, TokenizerConfig
from data_pipelines.errors import DataError, require

OWN = ("bytes", "bpe", "unigram", "word")
"""Tokenizers that special tokens can be added to: no published weights go with them."""

NAMED = ("bos", "cls", "sep", "pad", "eos", "unk", "mask")
"""Roles that `transformers` has an attribute for."""

SENTINEL = "sentinel_"

_KNOWN = {
    "question": ("[QUESTION]",),
    "fim_prefix": (
        "<fim_prefix>", "<|fim_prefix|>", "<fim-prefix>", "<|fim_begin|>", "▁<PRE>", "<PRE>",
    ),
    "fim_middle": (
        "<fim_middle>", "<|fim_middle|>", "<fim-middle>", "<|fim_end|>", "▁<MID>", "<MID>",
    ),
    "fim_suffix": (
        "<fim_suffix>", "<|fim_suffix|>", "<fim-suffix>", "<|fim_hole|>", "▁<SUF>", "<SUF>",
    ),
}  # fmt: skip
"""How published tokenizers spell what has no attribute of its own."""


def spelled(role: str) -> str:
    """The token that an own tokenizer has for a role."""
    if role.startswith(SENTINEL):
        return f"<extra_id_{role.removeprefix(SENTINEL)}>"
    return SPECIAL_TOKENS.get(role, f"<{role}>")


def added(config: TokenizerConfig, roles: Iterable[str]) -> dict[str, str]:
    """The tokens, by role, that an own tokenizer gets beside `SPECIAL_TOKENS`."""
    if config.kind not in OWN:
        return {}
    return {role: spelled(role) for role in roles if role not in SPECIAL_TOKENS}


def room_for(config: TokenizerConfig, count: int, smallest: int) -> int:
    """How many tokens are left to be learnt of `vocab_size`, special ones included.

    Raises:
        DataError: fewer than the smallest vocabulary.
    """
    require(
        config.vocab_size - count > smallest,
        f"tokenizer.vocab_size={config.vocab_size} is too small for tokenizer={config.kind} with "
        f"the {count} special tokens that the objective needs: give more than {smallest + count}",
    )
    return config.vocab_size - count


def find(
    tokenizer: str,
    named: Mapping[str, int | None],
    vocabulary: Mapping[str, int],
    roles: Sequence[str],
) -> dict[str, int]:
    """The ids, by role, of the special tokens that a tokenizer has by itself.

    Of sentinels it may have fewer than asked for, but one at least.

    Args:
        tokenizer: As the user named it, for the message.
        named: Ids of the roles in `NAMED`, None for what is missing.
        vocabulary: All tokens.
        roles: What is asked for.

    Raises:
        DataError: there are none for some of the roles.
    """
    found: dict[str, int] = {}
    for role in roles:
        spellings = (spelled(role), *_KNOWN.get(role, ()))
        number = named.get(role)
        if number is None and role not in NAMED:
            number = next((vocabulary[token] for token in spellings if token in vocabulary), None)
        if number is not None:
            found[role] = int(number)
    missing = [role for role in roles if role not in found]
    if f"{SENTINEL}0" in found:
        missing = [role for role in missing if not role.startswith(SENTINEL)]
    if missing:
        short = ("sentinel" if role.startswith(SENTINEL) else role for role in missing)
        names = ", ".join(dict.fromkeys(short))
        raise DataError(
            f"{tokenizer} has no special token for {names}, which the objective needs: use "
            f"tokenizer={', '.join(OWN[:-1])} or {OWN[-1]}, which get it, or add it to the "
            "tokenizer's files"
        )
    return found
