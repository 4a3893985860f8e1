"""The tokenizers of our own: bytes, byte-level BPE, unigram with bytes, words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from data_pipelines.config import SPECIAL_TOKENS, TokenizerConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Texts = Callable[[], Iterable[str]]

_SPACE = "\u2581"  # how unigram pieces write a space
# A word with the space before it, other spaces in one run (indentation is frequent in code), and
# line breaks.
_UNIGRAM_WORD = rf"{_SPACE}?[^{_SPACE}\t\r\n]+|{_SPACE}+(?={_SPACE})|{_SPACE}|[\t\r\n]+"


def byte_characters() -> list[str]:
    """The character that byte-level tokenizers (GPT-2's convention) write for each byte.

    Printable bytes stand for themselves, the others for the characters from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _special() -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS.values()]


def build_bytes(config: TokenizerConfig, texts: Texts) -> Tokenizer:
    """One token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = [*SPECIAL_TOKENS.values(), *byte_characters()]
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_special())
    return tokenizer


def build_bpe(config: TokenizerConfig, texts: Texts) -> Tokenizer:
    """Byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=_special(),
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def build_unigram(config: TokenizerConfig, texts: Texts) -> Tokenizer:
    """Unigram, with bytes for what has no piece."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    def shell(model: Any) -> Tokenizer:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_UNIGRAM_WORD), "isolated")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        return tokenizer

    rare = _rare_characters(texts(), (config.vocab_size - 256) // 2)
    learnt = shell(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size - 256,
        special_tokens=_special(),
        unk_token=SPECIAL_TOKENS["unk"],
        # So that a text that contains "<0x41>" or "<eos>" can be spelled letter by letter.
        initial_alphabet=sorted({*"<0x123456789ABCDEF>", *"".join(SPECIAL_TOKENS.values())}),
        show_progress=False,
    )
    learnt.train_from_iterator((rare.sub("\n", text) for text in texts()), trainer)
    vocabulary = [(piece, score) for piece, score in json.loads(learnt.to_str())["model"]["vocab"]]
    # The trainer knows no byte pieces. Their score and that of special tokens is so low that a
    # text which contains "<0x41>" or "<eos>" is not taken for them.
    first = len(SPECIAL_TOKENS)
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    never = [*SPECIAL_TOKENS.values(), *spelled]
    learnt_pieces = [(piece, score) for piece, score in vocabulary if piece not in never]
    low = [(piece, -1e4) for piece in never]
    vocabulary = [*low[:first], *learnt_pieces, *low[first:]]
    unknown = list(SPECIAL_TOKENS).index("unk")
    tokenizer = shell(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=True))
    tokenizer.add_special_tokens(_special())
    return tokenizer


def _rare_characters(texts: Iterable[str], most: int) -> re.Pattern[str]:
    """Matches the characters that get no piece of their own and are spelled in bytes.

    Those kept make up 99.95% of the text, as in SentencePiece, and are `most` at most: scripts
    with many characters would otherwise fill the vocabulary, or not fit into it.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    kept, covered = [], 0
    for character, count in counts.most_common(most):
        if covered >= 0.9995 * counts.total():
            break
        kept.append(character)
        covered += count
    return re.compile(f"[^{re.escape(''.join(kept))}]" if kept else r"[\s\S]")


def build_word(config: TokenizerConfig, texts: Texts) -> Tokenizer:
    """Words and punctuation, the most frequent."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS["unk"]))
    if config.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.vocab_size, special_tokens=_special(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer
