"""Where words and sentences begin, read off tokens."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.config import TokenizerConfig
from data_pipelines.token_marks import marks_of, read_marks
from data_pipelines.tokenizers import load_encoder, save_tokenizer
from tests.data_pipelines.corpora import make_text

TEXT = 'Über die Brücke. Es regnet 3.14 mm!\n\n"Ja." Sie  lief\ndavon'
SENTENCES = ["Über die Brücke.", " Es regnet 3.14 mm!\n\n", '"Ja."', " Sie  lief\n", "davon"]


def parts(ids: list[int], begins: np.ndarray, tokenizer) -> list[str]:  # type: ignore[no-untyped-def]
    borders = [*np.flatnonzero(begins).tolist(), len(ids)]
    return [tokenizer.decode(ids[a:b]) for a, b in itertools.pairwise(borders)]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram"])
def test_sentences_and_words_of_own_tokenizers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    config = TokenizerConfig(kind=kind, vocab_size=330)
    save_tokenizer(config, tmp_path, lambda: [TEXT * 20, make_text(1, 300)], ("cls",))
    ids = load_encoder(tmp_path).encode(TEXT).astype(np.int64)
    marks, tokenizer = read_marks(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert marks.shows_sentences
    found = parts(ids.tolist(), marks.sentences(ids), tokenizer)
    assert found == SENTENCES
    words = [word.strip() for word in parts(ids.tolist(), marks.words(ids), tokenizer)]
    for word in ("Über", "die", "Brücke", "regnet", "14", "Ja", "lief", "davon"):
        assert word in words
    # Special tokens stand alone.
    special = np.array([*ids[:2], 1, *ids[2:4], 0, 0])
    assert marks.words(special)[[2, 3, 5, 6]].all()
    assert not marks.ends_sentence[:4].any()
    assert not marks.ends_line[:4].any()


def test_words_without_spaces(tmp_path: Path) -> None:
    save_tokenizer(
        TokenizerConfig(kind="word", vocab_size=60), tmp_path, lambda: ["It rains . We go !"] * 3
    )
    encoder, marks = load_encoder(tmp_path), read_marks(tmp_path)
    ids = encoder.encode("It rains. We go! It").astype(np.int64)
    assert marks.words(ids).all()
    assert np.flatnonzero(marks.sentences(ids)).tolist() == [0, 3, 6]


def test_parts_of_words_with_a_prefix() -> None:
    tokens = [None, "play", "##ing", "##s", ".", "the"]
    marks = marks_of(tokens, {"model": {"type": "WordPiece", "continuing_subword_prefix": "##"}})
    ids = np.array([1, 2, 3, 4, 5, 1])
    assert marks.words(ids).tolist() == [True, False, False, True, True, True]
    assert np.flatnonzero(marks.sentences(ids)).tolist() == [0, 4]


def test_letters_alone_show_no_sentences() -> None:
    marks = marks_of([None, "A", "C", "G", "T"], {"model": {"type": "BPE"}})
    assert not marks.shows_sentences
    assert marks.words(np.array([1, 2, 3])).tolist() == [True, False, False]
