"""Builds the manifest from what tokenizing and packing counted."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from data_pipelines.corpus import Corpus, Integers
from data_pipelines.manifest import (
    FORMAT_VERSION,
    FileManifest,
    Manifest,
    SourceManifest,
    SplitManifest,
)
from data_pipelines.shards import Layout, Packed


def split_manifest(
    corpus: Corpus,
    split: int,
    order: Integers,
    packed: Packed,
    files: list[FileManifest],
    layout: Layout,
    append_eos: bool,
) -> SplitManifest:
    """What a split holds; see `SplitManifest` for the meaning of each number."""
    lengths, sizes = corpus.lengths[order], corpus.bytes[order]
    whole = packed.tokens == lengths
    # Only the end of a document is ever dropped, and its eos is the last token.
    content = lengths - append_eos
    kept = np.minimum(packed.tokens, content)
    bytes_kept = np.where(whole, sizes, np.round(sizes * (kept / np.maximum(content, 1))))
    histogram = sum(np.array(s.histograms[split], np.int64) for s in corpus.statistics)
    words = sum(s.words[split] for s in corpus.statistics)
    # Bytes that continue a character are those from 0x80 to 0xBF (RFC 3629).
    characters = int(np.sum(histogram) - np.sum(np.asarray(histogram)[0x80:0xC0]))
    kept_share = bytes_kept.sum() / max(1, sizes.sum())
    tokens = int(packed.tokens.sum())
    positions = packed.rows * layout.sequence_length
    return {
        "rows": packed.rows,
        "documents": len(order),
        "tokens": tokens,
        "eos_tokens": int(whole.sum()) if append_eos else 0,
        "bytes": int(bytes_kept.sum()),
        "characters": round(characters * kept_share),
        "words": round(words * kept_share),
        "padding_share": 1 - tokens / positions if positions else 0.0,
        "documents_cut": int(((packed.pieces > 1) | ~whole).sum()),
        "tokens_dropped": int((lengths - packed.tokens).sum()),
        "order0_bits_per_byte": order0_bits_per_byte(np.asarray(histogram)),
        "files": files,
    }


def build_manifest(
    corpus: Corpus,
    splits: dict[str, SplitManifest],
    layout: Layout,
    labels: list[str],
    *,
    fingerprint: str,
    length_multiple: int,
    seed: int,
    vocab_size: int,
    special_ids: dict[str, int],
    configs: dict[str, Any],
) -> Manifest:
    """The manifest of a prepared corpus. `labels` names the source of each unit."""
    both = list(splits.values())
    tokens = sum(split["tokens"] for split in both)
    positions = sum(split["rows"] for split in both) * layout.sequence_length
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "python": platform.python_version(),
        "source": configs["data"]["source"],
        "sequence_length": layout.sequence_length,
        "length_multiple": length_multiple,
        "seed": seed,
        "token_type": layout.token_type.name,
        "rows_per_file": layout.rows_per_file,
        "rows_per_batch": layout.rows_per_batch,
        "tokenizer": {
            "kind": configs["tokenizer"]["kind"],
            "vocab_size": vocab_size,
            "special_ids": special_ids,
        },
        "documents": len(corpus),
        "tokens": tokens,
        "bytes": sum(split["bytes"] for split in both),
        "padding_share": 1 - tokens / positions if positions else 0.0,
        "empty_documents": sum(s.empty for s in corpus.statistics),
        "skipped_documents": sum(s.skipped for s in corpus.statistics),
        "invalid_utf8": sum(s.invalid for s in corpus.statistics),
        "splits": splits,
        "sources": _sources(corpus, labels),
        "config": configs,
    }


def _sources(corpus: Corpus, labels: list[str]) -> dict[str, SourceManifest]:
    names = sorted(set(labels))
    number = np.array([names.index(label) for label in labels])
    found: dict[str, SourceManifest] = {}
    for index, name in enumerate(names):
        of_source = number[corpus.units] == index
        statistics = [s for s, n in zip(corpus.statistics, number, strict=True) if n == index]
        found[name] = {
            "documents": int(of_source.sum()),
            "tokens": int(corpus.lengths[of_source].sum()),
            "bytes": int(corpus.bytes[of_source].sum()),
            "empty_documents": sum(s.empty for s in statistics),
            "skipped_documents": sum(s.skipped for s in statistics),
            "invalid_utf8": sum(s.invalid for s in statistics),
        }
    return found


def order0_bits_per_byte(histogram: Integers) -> float:
    """Entropy of a byte histogram, in bits per byte; 0 for no bytes."""
    counts = histogram[histogram > 0]
    if len(counts) == 0:
        return 0.0
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
