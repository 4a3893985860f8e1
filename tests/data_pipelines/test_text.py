from __future__ import annotations

from itertools import pairwise

import pytest

from data_pipelines.text import InvalidTextError, Repairs, decode, first_cut, pieces

BAD = b"ab\xff\xfec\xc3(d\xe2\x82"


@pytest.mark.parametrize("step", [1, 2, 3, 100], ids=lambda n: f"chunks_of_{n}")
@pytest.mark.parametrize("policy", ["replace", "ignore"])
def test_decoding_in_chunks_equals_decoding_at_once(policy: str, step: int) -> None:
    repairs = Repairs()
    chunks = [BAD[i : i + step] for i in range(0, len(BAD), step)]
    assert "".join(decode(chunks, policy, repairs)) == BAD.decode("utf-8", policy)
    assert repairs.count == 4


def test_valid_text_needs_no_repairs_and_keeps_replacement_characters() -> None:
    repairs = Repairs()
    text = "a\ufffdb漢字😀"
    assert "".join(decode([text.encode()], "replace", repairs)) == text
    assert repairs.count == 0


@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_refusing_policies_raise(policy: str) -> None:
    with pytest.raises(InvalidTextError, match="invalid UTF-8"):
        list(decode([BAD], policy, Repairs()))


@pytest.mark.parametrize("limit", [5, 17, 64, 1000])
def test_pieces_join_to_the_text_and_end_before_whitespace(limit: int) -> None:
    text = "some words, \n\n  and  some\tmore (words); " * 20
    found = list(pieces([text[:13], text[13:200], text[200:]], limit))
    assert "".join(found) == text
    assert all(0 < len(piece) <= limit for piece in found)
    if limit >= 17:
        for piece, following in pairwise(found):
            assert piece[-1].isalnum()
            assert following[0] in " \t\n"


def test_text_without_whitespace_is_cut_at_the_limit() -> None:
    assert [len(piece) for piece in pieces(["x" * 25], 10)] == [10, 10, 5]


@pytest.mark.parametrize(
    ("window", "cut"),
    [
        (b"ord and", 3),
        (b"); next word", 7),
        (b"));\nx", 3),
        (b"\xbc\xa2abc", 2),
        (b"abc", 0),
        ("é 漢字".encode()[1:], 1 + 0),
        (b"", 0),
    ],
    ids=["word", "prefers_word", "punctuation", "character", "none", "mid_character", "empty"],
)
def test_first_cut(window: bytes, cut: int) -> None:
    assert first_cut(window) == cut
