"""What a prepared corpus says of itself, in `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict

FORMAT_VERSION = 4
"""Changes whenever the same configuration would give other rows or another layout on disk."""

FILE_NAME = "manifest.json"


class FileManifest(TypedDict):
    """One Arrow file; `blake2b` is the checksum of its content."""

    name: str
    rows: int
    bytes: int
    blake2b: str


class SplitManifest(TypedDict):
    """One split.

    `tokens` are those written, eos included; `bytes` the UTF-8 bytes of the text they spell, so a
    loss summed over a split is in bits per byte after division by ln 2 and `bytes`. `characters`
    are the Unicode code points of that text, `words` its runs of other bytes than ASCII whitespace.
    `documents_cut` are those in more than one piece or without their end, `tokens_dropped` what
    `one_per_row` left out (whose bytes are estimated document by document).
    `order0_bits_per_byte` is the entropy of the split's byte histogram: what a model reaches
    that knows how often each byte occurs and nothing else.
    """

    rows: int
    documents: int
    tokens: int
    eos_tokens: int
    bytes: int
    characters: int
    words: int
    padding_share: float
    documents_cut: int
    tokens_dropped: int
    order0_bits_per_byte: float
    files: list[FileManifest]


class SourceManifest(TypedDict):
    """What came from one entry of `data.paths`, or from the dataset or library."""

    documents: int
    tokens: int
    bytes: int
    empty_documents: int
    skipped_documents: int
    invalid_utf8: int


class TokenizerManifest(TypedDict):
    """The tokenizer; `special_ids` maps pad, eos, unk, mask to ids, as far as it has them, and the
    roles that the objective asked for (`special_tokens.py`)."""

    kind: str
    vocab_size: int
    special_ids: dict[str, int]


class Manifest(TypedDict):
    """The whole. Totals count both splits; skipped and empty documents are in neither."""

    format_version: int
    fingerprint: str
    python: str
    source: str
    sequence_length: int
    length_multiple: int
    seed: int
    token_type: str
    rows_per_file: int
    rows_per_batch: int
    tokenizer: TokenizerManifest
    documents: int
    tokens: int
    bytes: int
    padding_share: float
    empty_documents: int
    skipped_documents: int
    invalid_utf8: int
    splits: dict[str, SplitManifest]
    sources: dict[str, SourceManifest]
    config: dict[str, Any]


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a prepared corpus."""
    manifest: Manifest = json.loads((folder / FILE_NAME).read_text())
    return manifest


def content_digest(manifest: Manifest) -> str:
    """What the rows of the training split are, wherever their source lay and when.

    Two preparations with the same digest hold the same rows in the same order, even where the
    fingerprint differs because the source was moved or touched.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in manifest["splits"]["train"]["files"]:
        digest.update(file["blake2b"].encode())
    return digest.hexdigest()
