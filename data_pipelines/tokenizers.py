"""Tokenizers: trained here or loaded, saved so that `AutoTokenizer.from_pretrained` loads them.

`bytes`, `bpe`, `unigram` and `word` give the special tokens `<pad> <eos> <unk> <mask>` the ids 0 to
3, and those that an objective adds (`special_tokens.py`) the last ones. In `bytes` byte b is token
4 + b. All but `word` spell every text: `bpe` works on bytes, `unigram` falls back to them. Those of
the published models are in `published_tokenizers.py`. A special token that occurs *in a text* is
text like any other, here and (through `split_special_tokens`) in `transformers`, so no document can
end itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines import special_tokens
from data_pipelines.config import SMALLEST_VOCABULARY, SPECIAL_TOKENS, TokenizerConfig
from data_pipelines.errors import DataError
from data_pipelines.published_tokenizers import (
    PICKLES,
    BuiltTokenizer,
    from_published,
    learn_roberta,
    learn_sentencepiece_bpe,
    learn_transformer_xl,
)
from data_pipelines.tokenizer_builders import (
    Texts,
    build_bpe,
    build_bytes,
    build_unigram,
    build_word,
)

Tokens = np.ndarray[Any, np.dtype[Any]]

SETTINGS = "encoding.json"
"""Beside the tokenizer's own files: what encoding a corpus needs to know of it."""


class Encoder(Protocol):
    """Turns text into token ids, without any special tokens.

    Attributes:
        vocab_size: Ids that there are.
        special_ids: Of the special tokens, by role.
        begin: Ids that stand before each document.
    """

    vocab_size: int
    special_ids: dict[str, int]
    begin: list[int]

    def encode(self, text: str) -> Tokens: ...


def token_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned integer that holds every id of a vocabulary."""
    return np.min_scalar_type(vocab_size - 1)


def save_tokenizer(
    config: TokenizerConfig, folder: Path, texts: Texts, special: Sequence[str] = ()
) -> None:
    """Trains or loads the tokenizer and writes it to `folder`.

    Args:
        config: Which tokenizer.
        folder: Is created.
        texts: Gives the text to learn a vocabulary from, as often as it is called.
        special: Roles of special tokens that it has to have beside those it always has.

    Raises:
        DataError: if a pretrained tokenizer cannot be loaded or lacks a token to end documents
            with, a special token is missing, or the vocabulary cannot be learnt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config.kind == "pretrained":
        _copy_pretrained(config, folder, special)
        return
    extra = special_tokens.added(config, special)
    if extra and config.kind != "bytes":
        smallest = len(SPECIAL_TOKENS) if config.kind == "word" else SMALLEST_VOCABULARY
        room = special_tokens.room_for(config, len(extra), smallest)
        config = replace(config, vocab_size=room)
    try:
        built = _BUILDERS[config.kind](config, texts)
    except DataError:
        raise
    except Exception as error:  # the trainers raise plain Exception
        raise DataError(
            f"tokenizer={config.kind} with vocab_size={config.vocab_size} cannot be learnt "
            f"from this text: {error}"
        ) from error
    built.add_special(extra)
    _save(built, config.kind, folder, special)


def save_published(source: Path, folder: Path, special: Sequence[str] = ()) -> int | None:
    """Makes a tokenizer of published vocabulary files that `transformers` cannot open.

    Args:
        source: Folder with `vocab.txt`, `vocab.pkl`, `vocab.bin` or `spiece.model`, or with
            `vocab.json` and `merges.txt`.
        folder: Is created, if there is something to be made.
        special: As `save_tokenizer` takes it.

    Returns:
        The number of tokens; None where `transformers` is to be asked.

    Raises:
        DataError: a file is damaged, a pickle asks for more than plain containers, or a special
            token is missing.
    """
    try:
        built = from_published(source)
    except DataError:
        raise
    except Exception as error:  # whatever making something of someone else's files can raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{source}: no tokenizer can be made of its vocabulary files: {reason[:200]}"
        ) from error
    if built is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    _save(built, "pretrained", folder, special)
    return built.tokenizer.get_vocab_size()


def _save(built: BuiltTokenizer, kind: str, folder: Path, wanted: Sequence[str]) -> None:
    ids = built.save(folder)
    named = {role: token for role, token in built.roles.items() if role in special_tokens.NAMED}
    roles: dict[str, Any] = {f"{role}_token": token for role, token in named.items()}
    if others := [token for role, token in built.roles.items() if role not in named]:
        roles["additional_special_tokens"] = others
    loading = {
        "tokenizer_class": built.tokenizer_class,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(roles, indent=1))
    configured = loading | roles | built.loading
    (folder / "tokenizer_config.json").write_text(json.dumps(configured, indent=1))
    vocabulary = built.tokenizer.get_vocab(with_added_tokens=True)
    special = {role: ids[role] for role in SPECIAL_TOKENS if role in ids}
    special |= special_tokens.find(f"tokenizer={kind}", ids, vocabulary, wanted)
    begin = [special["eos"]] if built.loading.get("add_double_eos") else []
    _write_settings(folder, kind, max(vocabulary.values()) + 1, special, begin)


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
        self.begin: list[int] = settings.get("begin", [])
        self._type = token_type(self.vocab_size)

    def encode(self, text: str) -> Tokens:
        return np.frombuffer(text.encode(), np.uint8).astype(self._type) + len(SPECIAL_TOKENS)


class FastEncoder:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        from tokenizers import Tokenizer

        self.vocab_size: int = settings["vocab_size"]
        self.special_ids: dict[str, int] = settings["special_ids"]
        self.begin: list[int] = settings.get("begin", [])
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
        self.begin: list[int] = settings.get("begin", [])
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
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in _TOKENIZER_SUFFIXES or path.name in PICKLES
    )
    return [(path.name, hashlib.blake2b(path.read_bytes()).hexdigest()) for path in files]


_TOKENIZER_SUFFIXES = {".json", ".txt", ".model", ".vocab", ".tiktoken", ".jinja"}


def _write_settings(
    folder: Path, kind: str, size: int, special: dict[str, int], begin: list[int]
) -> None:
    settings = {"kind": kind, "vocab_size": size, "special_ids": special, "begin": begin}
    (folder / SETTINGS).write_text(json.dumps(settings))


def _copy_pretrained(config: TokenizerConfig, folder: Path, wanted: Sequence[str]) -> None:
    from transformers import AutoTokenizer

    local = Path(config.name or "").expanduser()
    if local.is_dir() and save_published(local, folder, wanted) is not None:
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.name, revision=config.revision)
    except Exception as error:  # whatever loading someone else's files can raise
        if not local.exists() and _fetch_vocabulary(config, folder, wanted):
            return
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
    named = {role: getattr(tokenizer, f"{role}_token_id") for role in special_tokens.NAMED}
    special = {role: int(named[role]) for role in SPECIAL_TOKENS if named[role] is not None}
    vocabulary = tokenizer.get_vocab()
    special |= special_tokens.find(f"tokenizer.name={config.name}", named, vocabulary, wanted)
    begin = [special["eos"]] if tokenizer.init_kwargs.get("add_double_eos") else []
    _write_settings(folder, "pretrained", max(vocabulary.values()) + 1, special, begin)


def _fetch_vocabulary(config: TokenizerConfig, folder: Path, wanted: Sequence[str]) -> bool:
    """Whether the Hub has vocabulary files that a tokenizer could be made of, as it now is."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = ["config.json", "tokenizer_config.json", "vocab.*", "merges.txt", "spiece.model"]
    try:
        fetched = snapshot_download(
            str(config.name), revision=config.revision, allow_patterns=patterns
        )
    except (HfHubHTTPError, HFValidationError, OSError):
        return False
    return save_published(Path(fetched), folder, wanted) is not None


def _own(
    build: Callable[[TokenizerConfig, Texts], Any],
) -> Callable[[TokenizerConfig, Texts], BuiltTokenizer]:
    return lambda config, texts: BuiltTokenizer(build(config, texts), dict(SPECIAL_TOKENS))


_BUILDERS: dict[str, Callable[[TokenizerConfig, Texts], BuiltTokenizer]] = {
    "bytes": _own(build_bytes),
    "bpe": _own(build_bpe),
    "unigram": _own(build_unigram),
    "word": _own(build_word),
    "sentencepiece_bpe": learn_sentencepiece_bpe,
    "roberta": learn_roberta,
    "transformer_xl": learn_transformer_xl,
}
