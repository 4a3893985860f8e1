"""Reads a `spiece.model` of BPE, without the sentencepiece library.

The file is a protocol buffer (sentencepiece_model.proto); of it are read the pieces with their
types, the kind of model, and the table of its character normalization.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the model
_PIECE, _PIECE_TYPE = 1, 3  # of a piece
_MODEL_TYPE = 3  # of the trainer's settings
_CHARSMAP = 2  # of the normalizer's
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types


@dataclass
class SentencePieceModel:
    """What a BPE tokenizer is made of.

    Attributes:
        vocabulary: Ids by piece.
        merges: In the order of their priority.
        control: Pieces that stand for no text, `<s>` for example.
        unknown: The piece for what has none.
        charsmap: Compiled table of the character normalization; empty for none.
    """

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    control: list[str]
    unknown: str
    charsmap: bytes


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a model.

    Raises:
        DataError: if the file is damaged, or its model is not BPE.
    """
    try:
        return _read(path)
    except (
        IndexError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise DataError(f"{path} is not a SentencePiece model: {error}") from error


def _read(path: Path) -> SentencePieceModel:
    vocabulary: dict[str, int] = {}
    control: list[str] = []
    unknown, charsmap, kind = "<unk>", b"", 1
    for field, value in _fields(path.read_bytes()):
        if field == _PIECES:
            entry = dict(_fields(value))
            piece = entry[_PIECE].decode()
            type_ = entry.get(_PIECE_TYPE, _NORMAL)
            if type_ == _UNKNOWN:
                unknown = piece
            elif type_ == _CONTROL:
                control.append(piece)
            vocabulary[piece] = len(vocabulary)
        elif field == _TRAINER:
            kind = dict(_fields(value)).get(_MODEL_TYPE, 1)
        elif field == _NORMALIZER:
            charsmap = dict(_fields(value)).get(_CHARSMAP, b"")
    if not vocabulary:
        raise ValueError("it has no pieces")
    if kind != _BPE:
        raise DataError(
            f"{path} holds no BPE model, which is what the published Reformer has: give a folder "
            "with tokenizer.json"
        )
    return SentencePieceModel(vocabulary, merges_of(vocabulary), control, unknown, charsmap)


def merges_of(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges of a vocabulary that was learnt by merging: pieces are numbered in that order."""
    merges = []
    for piece in sorted(vocabulary, key=vocabulary.__getitem__):
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
    return merges


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a message: int, or the bytes of a string or message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_EIGHT, _FOUR):
            size = 8 if wire == _EIGHT else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError("it ends too early")
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
