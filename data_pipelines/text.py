"""From raw bytes to pieces of text: the policy for invalid UTF-8, and where text may be cut."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

PIECE_CHARACTERS = 2**18
"""Text is tokenized in pieces of at most so many characters, so memory does not grow with it."""

_SEARCHED = 2**14  # characters

# Every tokenizer built here splits text before it merges, and never inside the step from a
# character to the space after it: a space belongs to what follows. So a cut between a letter or
# digit and a space leaves each token as it would have been. Some put a space before a text that
# has none there, so a plain space is preferred; pretrained tokenizers may join punctuation with a
# line break, which is why a letter is preferred to just any character.
_CUTS = tuple(map(re.compile, (r"[^\W_](?= )", r"[^\W_](?=[\t\r\n])", r"\S(?=[ \t\r\n])")))


class InvalidTextError(Exception):
    """Invalid UTF-8 where the policy is not to repair it."""


@dataclass
class Repairs:
    """How many invalid UTF-8 sequences were met."""

    count: int = 0


_met = Repairs()  # of the process; `decode` takes differences


def _handler(substitute: str | None) -> Callable[[UnicodeError], tuple[str, int]]:
    def handle(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        _met.count += 1
        if substitute is None:
            raise InvalidTextError(f"invalid UTF-8 ({error.reason})")
        return substitute, error.end

    return handle


# Python calls a handler only where something is wrong, so valid text decodes at full speed, and
# a file that is not text at all costs no more than time linear in its size.
for _policy, _substitute in (("replace", "\ufffd"), ("ignore", ""), ("skip", None)):
    codecs.register_error(f"data_pipelines.{_policy}", _handler(_substitute))
codecs.register_error("data_pipelines.strict", _handler(None))


def decode(chunks: Iterable[bytes], policy: str, repairs: Repairs) -> Iterator[str]:
    """Decodes UTF-8 that arrives in chunks cut anywhere.

    Args:
        chunks: The bytes of one document, in order.
        policy: A value of `data.encoding_errors`.
        repairs: Is told the number of invalid sequences.

    Raises:
        InvalidTextError: at the first invalid sequence, for the policies `strict` and `skip`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors=f"data_pipelines.{policy}")

    def step(chunk: bytes, final: bool) -> str:
        before = _met.count
        try:
            return decoder.decode(chunk, final)
        finally:
            repairs.count += _met.count - before

    for chunk in chunks:
        yield step(chunk, False)
    yield step(b"", True)


def pieces(texts: Iterable[str], limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Regroups text into pieces of at most `limit` characters, cut where tokens do not change.

    Text without whitespace is cut at `limit`: bounded memory comes first.
    """
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size < limit:
            continue
        joined = "".join(held)
        while len(joined) >= limit:
            cut = last_cut(joined[:limit])
            yield joined[:cut]
            joined = joined[cut:]
        held, size = [joined], len(joined)
    if size:
        yield "".join(held)


def last_cut(text: str) -> int:
    """Length of the longest beginning of `text` that can be cut off without dividing a token.

    If the last `_SEARCHED` characters hold no whitespace, all of it.
    """
    start = max(0, len(text) - _SEARCHED)
    for pattern in _CUTS:
        cut = max((match.end() for match in pattern.finditer(text, start)), default=0)
        if cut:
            return cut
    return len(text)


def first_cut(window: bytes) -> int:
    """How far into `window` the first place lies where text can be cut without dividing a token.

    Without whitespace it is the first character boundary.
    """
    text = window.decode("utf-8", "surrogateescape")
    for pattern in _CUTS:
        match = pattern.search(text)
        if match:
            return len(text[: match.end()].encode("utf-8", "surrogateescape"))
    return next((i for i, byte in enumerate(window) if byte & 0xC0 != 0x80), 0)
