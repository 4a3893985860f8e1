"""Small corpora, and what was packed of them put together again."""

from __future__ import annotations

import random
from pathlib import Path

from data_pipelines.prepare import PreparedData

WORDS = ["the", "quick", "brown", "fox,", "jumps", "over", "a", "lazy", "dog;"]
WORDS += ["été", "漢字", "😀", "def", "f(x):", "return", "1_000", "self.name"]


def make_text(seed: int, words: int) -> str:
    generator = random.Random(seed)
    spaces = (" ", " ", " ", "\n", "\n\n", "  ", "\t")
    return "".join(generator.choice(WORDS) + generator.choice(spaces) for _ in range(words))


def write_corpus(folder: Path, files: int = 40, words: int = 300) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        text = make_text(number, words + 37 * number % 211)
        (folder / f"{number:03d}.txt").write_bytes(text.encode())
    return folder


def rows_of(prepared: PreparedData, name: str = "train") -> list[tuple[bytes, bytes]]:
    """All rows of a split, for comparison."""
    split = prepared.split(name)
    return [tuple(part.tobytes() for part in split.row(i)) for i in range(len(split))]


def texts_of(prepared: PreparedData, name: str) -> list[str]:
    """The documents of a split that was packed with the byte tokenizer, put together again."""
    split, eos = prepared.split(name), prepared.manifest["tokenizer"]["special_ids"]["eos"]
    stream: list[int] = []
    for index in range(len(split)):
        ids, segments = split.row(index)
        stream += ids[segments > 0].tolist()
    texts, held = [], bytearray()
    for token in stream:
        if token == eos:
            texts.append(held.decode())
            held.clear()
        else:
            held.append(token - 4)
    assert not held
    return texts
