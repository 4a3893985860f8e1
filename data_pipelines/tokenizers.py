"""Tokenizers: trained here or loaded, saved so that `AutoTokenizer.from_pretrained` loads them.

What is built here gives the special tokens `<pad> <eos> <unk> <mask>` the ids 0 to 3. In `bytes`
byte b is token 4 + b. All but `word` spell every text: `bpe` works on bytes, `unigram` falls back
to them. A special token that occurs *in a text* is text like any other, here and (through
`split_special_tokens`) in `transformers`, so no document can end itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data_pipelines.config import SPECIAL_TOKENS, TokenizerConfig
from data_pipelines.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tokens = np.ndarray[Any, np.dtype[Any]]

SETTINGS = "encoding.json"
"""Beside the tokenizer's own files: what encoding a corpus needs to know of it."""

_SPACE = "\u2581"  # how unigram pieces write a space
# A word with the space before it, other spaces in one run (indentation is frequent in code), and
# line breaks.
_UNIGRAM_WORD = rf"{_SPACE}?[^{_SPACE}\t\r\n]+|{_SPACE}+(?={_SPACE})|{_SPACE}|[\t\r\n]+"


class Encoder(Protocol):
    """Turns text into token ids, without any special tokens."""

    vocab_size: int
    special_ids: dict[str, int]

    def encode(self, text: str) -> Tokens: ...


def token_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned integer that holds every id of a vocabulary."""
    return np.min_scalar_type(vocab_size - 1)


def save_tokenizer(
    config: TokenizerConfig, folder: Path, texts: Callable[[], Iterable[str]]
) -> None:
    """Trains or loads the tokenizer and writes it to `folder`.

    Args:
        config: Which tokenizer.
        folder: Is created.
        texts: Gives the text to learn a vocabulary from, as often as it is called.

    Raises:
        DataError: if a pretrained tokenizer cannot be loaded or lacks a token to end documents
            with, or the vocabulary cannot be learnt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config.kind == "pretrained":
        _copy_pretrained(config, folder)
        return
    try:
        tokenizer = _BUILDERS[config.kind](config, texts)
    except DataError:
        raise
    except Exception as error:  # the trainers raise plain Exception
        raise DataError(
            f"tokenizer={config.kind} with vocab_size={config.vocab_size} cannot be learnt "
            f"from this text: {error}"
        ) from error
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {f"{role}_token": token for role, token in SPECIAL_TOKENS.items()}
    loading = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(roles, indent=1))
    (folder / "tokenizer_config.json").write_text(json.dumps(loading | roles, indent=1))
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    _write_settings(folder, config.kind, size, dict(zip(SPECIAL_TOKENS, range(4), strict=True)))


def load_encoder(folder: Path) -> Encoder:
    """The encoder for a folder that `save_tokenizer` wrote."""
    settings = json.loads((folder / SETTINGS).read_text())
    if settings["kind"] == "bytes":
        return ByteEncoder(settings)
    if (folder / "tokenizer.json").exists():
        return FastEncoder(settings, folder)
    return SlowEncoder(settings, folder)


class ByteEncoder:
    """Byte b is token 4 + b: what the saved tokenizer computes too, a hundred times faster."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.vocab_size: int = settings["vocab_size"]
        self.special_ids: dict[str, int] = settings["special_ids"]

    def encode(self, text: str) -> Tokens:
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint16) + len(SPECIAL_TOKENS)


class FastEncoder:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        from tokenizers import Tokenizer

        self.vocab_size: int = settings["vocab_size"]
        self.special_ids: dict[str, int] = settings["special_ids"]
        self._type = token_type(self.vocab_size)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True
        # Published tokenizers may carry the settings of their last use.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> Tokens:
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, self._type)


class SlowEncoder:
    """A tokenizer that `transformers` implements in Python."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        from transformers import AutoTokenizer

        self.vocab_size: int = settings["vocab_size"]
        self.special_ids: dict[str, int] = settings["special_ids"]
        self._type = token_type(self.vocab_size)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(self, text: str) -> Tokens:
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return np.array(ids, self._type)


def identity(config: TokenizerConfig) -> list[Any]:
    """What a tokenizer is, for the fingerprint: a local folder by the contents of its files."""
    folder = Path(config.name or "").expanduser()
    if config.kind != "pretrained" or not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix in _TOKENIZER_SUFFIXES)
    return [(path.name, hashlib.blake2b(path.read_bytes()).hexdigest()) for path in files]


_TOKENIZER_SUFFIXES = {".json", ".txt", ".model", ".vocab", ".tiktoken", ".jinja"}


def _write_settings(folder: Path, kind: str, size: int, special: dict[str, int]) -> None:
    settings = {"kind": kind, "vocab_size": size, "special_ids": special}
    (folder / SETTINGS).write_text(json.dumps(settings))


def _copy_pretrained(config: TokenizerConfig, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.name, revision=config.revision)
    except Exception as error:  # whatever loading someone else's files can raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise DataError(
            f"tokenizer.name={config.name} cannot be loaded: {reason[:300]}\n"
            "give a folder with tokenizer.json or the name of a repository on the Hub"
        ) from error
    if tokenizer.eos_token is None:
        # Encoders end a text with their separator.
        tokenizer.eos_token = tokenizer.sep_token or tokenizer.pad_token
    if tokenizer.eos_token is None:
        raise DataError(
            f"tokenizer.name={config.name} has none of the tokens eos, sep and pad, so nothing "
            "can end a document: add an eos_token to its tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in SPECIAL_TOKENS}
    special = {role: int(number) for role, number in ids.items() if number is not None}
    _write_settings(folder, "pretrained", max(tokenizer.get_vocab().values()) + 1, special)


def _byte_characters() -> list[str]:
    """The character that byte-level tokenizers (GPT-2's convention) write for each byte.

    Printable bytes stand for themselves, the others for the characters from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _special() -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS.values()]


def _build_bytes(config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = [*SPECIAL_TOKENS.values(), *_byte_characters()]
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_special())
    return tokenizer


def _build_bpe(config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=_special(),
        initial_alphabet=_byte_characters(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _build_unigram(config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
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


def _build_word(config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
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


_BUILDERS: dict[str, Callable[[TokenizerConfig, Callable[[], Iterable[str]]], Tokenizer]] = {
    "bytes": _build_bytes,
    "bpe": _build_bpe,
    "unigram": _build_unigram,
    "word": _build_word,
}
