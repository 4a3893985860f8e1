"""What the text of a token says of words, sentences and lines, for every token of a vocabulary.

Rows hold no text. So where words and sentences begin in them is read off their tokens, by tables
that are made once. A vocabulary whose tokens show nothing of the kind has tables that are all
false, and `shows_sentences` says so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.tokenizer_builders import byte_characters

Flags = np.ndarray[Any, np.dtype[np.bool_]]
Integers = np.ndarray[Any, np.dtype[np.int64]]

_ENDS_SENTENCE = re.compile(r"""[.!?。！？…।]["'”’»)\]]*\s*$""")
_CLOSES = re.compile(r"""["'”’»)\]]+$""")
_SPACE = "\u2581"
_STOP_WORDS = (
    "an the and or but nor if then than so as at by for from in into of off on onto out over to up "
    "with without about after before between during through under again further once here there "
    "when where why how all any both each few more most other some such no not only own same too "
    "very can will just should now he him his she her hers it its itself they them their theirs "
    "you your yours we us our ours me my mine this that these those who whom whose which what am "
    "is are was were be been being have has had having do does did doing would could may might "
    "must shall also"
)
"""Words of one letter are left to the tokens: in some vocabularies every letter is a token."""


@dataclass(frozen=True)
class TokenMarks:
    """Tables over the vocabulary; each is (V,).

    Attributes:
        opens_word: Whether a word never goes on with the token.
        closes_word: Whether a word never goes on after it.
        ends_sentence: Whether a full stop or its like is the end of the token.
        closes_quote: Whether it is a closing quote or bracket alone, which may follow on that.
        opens_sentence: Whether a sentence may begin with the token after such an end: it has a
            space first, or the vocabulary has no spaces.
        ends_line: Whether a line break is the end of the token.
        content: Whether a letter or digit is in it, and it is more than an English stop word.
    """

    opens_word: Flags
    closes_word: Flags
    ends_sentence: Flags
    closes_quote: Flags
    opens_sentence: Flags
    ends_line: Flags
    content: Flags

    @property
    def shows_sentences(self) -> bool:
        """Whether any token ends a sentence or a line."""
        return bool(self.ends_sentence.any() or self.ends_line.any())

    def words(self, ids_L: Integers) -> Flags:
        """(L,) where words begin; the first token always does."""
        begins = np.ones(len(ids_L), bool)
        begins[1:] = self.opens_word[ids_L[1:]] | self.closes_word[ids_L[:-1]]
        return begins

    def sentences(self, ids_L: Integers) -> Flags:
        """(L,) where sentences begin: after a full stop and its like, or a line break."""
        begins = np.ones(len(ids_L), bool)
        before, after = ids_L[:-1], ids_L[1:]
        ends = self.ends_sentence[before]
        ends[1:] |= ends[:-1] & self.closes_quote[before[1:]]
        stop = ends & self.opens_sentence[after]
        # A break that follows on a full stop or another break belongs to what it ends.
        line = self.ends_line[before]
        begins[1:] = (stop | line) & ~self.ends_line[after]
        return begins


def every_token_a_word(size: int) -> TokenMarks:
    """The tables of a vocabulary of which nothing is known."""
    every, none = np.ones(size, bool), np.zeros(size, bool)
    return TokenMarks(every, every, none, none, every, none, every)


def read_marks(folder: Path) -> TokenMarks:
    """The tables of a tokenizer.

    Args:
        folder: Where `save_tokenizer` wrote it.
    """
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        written = json.loads(tokenizer.to_str())
        special = {token["id"] for token in written["added_tokens"] if token["special"]}
    else:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(folder)
        vocabulary, special, written = loaded.get_vocab(), set(loaded.all_special_ids), {}
    size = json.loads((folder / "encoding.json").read_text())["vocab_size"]
    tokens: list[str | None] = [None] * size
    for token, number in vocabulary.items():
        if number < size and number not in special:
            tokens[number] = token
    return marks_of(tokens, written)


def marks_of(tokens: list[str | None], written: dict[str, Any]) -> TokenMarks:
    """The tables of a vocabulary.

    Args:
        tokens: (V,) as the vocabulary spells them; None for special tokens, which belong to
            neither words nor sentences.
        written: The content of `tokenizer.json`, as far as there is one.
    """
    model = written.get("model", {})
    kind = model.get("type")
    if kind in ("WordPiece", "WordLevel"):
        return _of_words(tokens, model.get("continuing_subword_prefix"))
    spelling = _bytes_spelled if _byte_level(written) else _characters
    texts = [None if token is None else spelling(token) for token in tokens]

    def table(test: Any) -> Flags:
        return np.array([text is not None and test(text) for text in texts], bool)

    special = np.array([text is None for text in texts], bool)
    return TokenMarks(
        opens_word=special | table(lambda text: not _in_word(text[:1])),
        closes_word=special | table(lambda text: not _in_word(text[-1:])),
        ends_sentence=table(lambda text: _ENDS_SENTENCE.search(text) is not None),
        closes_quote=table(lambda text: _CLOSES.match(text) is not None),
        opens_sentence=table(lambda text: text[:1].isspace()),
        ends_line=table(lambda text: text[-1:] in ("\n", "\r")),
        content=table(_says_something),
    )


def _of_words(tokens: list[str | None], prefix: str | None) -> TokenMarks:
    """Of whole words, or parts of which all but the first have a prefix; there are no spaces."""
    inside = [
        token is not None and bool(prefix) and token.startswith(str(prefix)) for token in tokens
    ]
    opens = ~np.array(inside, bool)
    ends = [token is not None and _ENDS_SENTENCE.search(token) is not None for token in tokens]
    none = np.zeros(len(tokens), bool)
    # Without spaces a quote after a full stop may as well be the next sentence's.
    content = [token is not None and _says_something(token) for token in tokens]
    return TokenMarks(opens, none, np.array(ends, bool), none, opens, none, np.array(content, bool))


_STOPS = frozenset(_STOP_WORDS.split())


def _says_something(text: str) -> bool:
    return any(map(_in_word, text)) and text.strip().lower() not in _STOPS


def _byte_level(written: dict[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps([written.get("pre_tokenizer"), written.get("decoder")])


_BYTES = {character: byte for byte, character in enumerate(byte_characters())}


def _bytes_spelled(token: str) -> str:
    # A part of a character is told apart from every character of its own: it is inside a word.
    raw = bytes(_BYTES[c] for c in token if c in _BYTES)
    return raw.decode("utf-8", "surrogateescape")


def _characters(token: str) -> str:
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
    if byte:
        return bytes([int(byte[1], 16)]).decode("utf-8", "surrogateescape")
    return token.replace(_SPACE, " ")


def _in_word(character: str) -> bool:
    """Whether a character is of a word; half a character of UTF-8 is."""
    return character.isalnum() or character == "_" or "\udc80" <= character <= "\udcff"
