"""A Reformer that trains in milliseconds, and batches for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lsp.core.batch import IGNORE_INDEX, Batch, positions_from_segments
from lsp.models.longformer import Longformer
from lsp.models.longformer_config import LongformerConfig
from lsp.models.mega import Mega
from lsp.models.mega_config import MegaConfig
from lsp.models.memory import MemoryConfig
from lsp.models.nezha import Nezha
from lsp.models.nezha_config import NezhaConfig
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from lsp.models.transformer_xl import TransformerXL
from lsp.models.transformer_xl_config import TransformerXLConfig

LENGTH = 64


def reformer(
    residual: str = "reversible", *, memory: MemoryConfig | None = None, **values: Any
) -> Reformer:
    settings: dict[str, Any] = {
        "attn_layers": ["local", "lsh"],
        "hidden_size": 32,
        "feed_forward_size": 48,
        "num_attention_heads": 2,
        "attention_head_size": 16,
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "max_position_embeddings": LENGTH,
        "num_buckets": 8,
        "num_hashes": 2,
        "vocab_size": 64,
        "is_decoder": True,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
    }
    memory = memory or MemoryConfig(residual=residual)
    return Reformer(ReformerConfig(**settings | values), memory)


def longformer(memory: str = "auto", **values: Any) -> Longformer:
    settings: dict[str, Any] = {
        "attention_window": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": LENGTH + 2,
        "vocab_size": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return Longformer(LongformerConfig(**settings | values), MemoryConfig(residual=memory))


def mega(memory: str = "auto", **values: Any) -> Mega:
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 40,
        "ema_projection_size": 4,
        "shared_representation_size": 8,
        "nffn_hidden_size": 48,
        "use_chunking": True,
        "chunk_size": 16,
        "max_positions": LENGTH,
        "vocab_size": 64,
        "dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "nffn_activation_dropout_prob": 0.0,
    }
    if values.get("is_decoder"):
        values = {"bidirectional": False, **values}
    return Mega(MegaConfig(**settings | values), MemoryConfig(residual=memory))


def nezha(residual: str = "auto", *, memory: MemoryConfig | None = None, **values: Any) -> Nezha:
    """Its relative positions are told apart within an eighth of a row."""
    settings: dict[str, Any] = {
        "max_relative_position": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return Nezha(NezhaConfig(**settings | values), memory or MemoryConfig(residual=residual))


def transformer_xl(residual: str = "recomputed", **values: Any) -> TransformerXL:
    """Clusters of tokens, and a memory longer than a row, of whatever text was before."""
    settings: dict[str, Any] = {
        "d_model": 32,
        "d_embed": 32,
        "n_layer": 2,
        "n_head": 2,
        "d_head": 16,
        "d_inner": 48,
        "mem_len": 80,
        "same_length": False,
        "clamp_len": 100,
        "cutoffs": [20, 40],
        "div_val": 2,
        "vocab_size": 64,
        "dropout": 0.0,
        "memory_across_documents": True,
    }
    return TransformerXL(TransformerXLConfig(**settings | values), MemoryConfig(residual=residual))


def batch(seed: int, rows: int = 4) -> Batch:
    """Rows that differ widely in how many of their tokens are predicted."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 64, (rows, LENGTH), generator=generator)
    ids[:, 1::2] = ids[:, ::2]  # something to learn
    labels = ids.roll(-1, 1)
    labels[:, -1] = IGNORE_INDEX
    for row in range(rows):
        labels[row, LENGTH - 1 - 15 * (row % 4) :] = IGNORE_INDEX
    segments = torch.ones_like(ids)
    segments[-1, LENGTH // 2 :] = 2
    return Batch(ids, labels, segments, positions_from_segments(segments))


def with_pairs(rows: Batch) -> Batch:
    """The same rows, each of which is a pair of texts, and the last of them two."""
    shape = (len(rows.input_ids), 2)
    positions = torch.tensor([0, LENGTH // 2]).expand(shape)
    labels = torch.arange(shape[0])[:, None].expand(shape) % 2
    there = rows.segment_ids.gather(1, positions) == torch.tensor([1, 2])
    labels = torch.where(there, labels, IGNORE_INDEX)
    types = (rows.position_ids > 20).long()
    extra = {"token_type_ids": types, "pair_positions": positions, "pair_labels": labels}
    return dataclasses.replace(rows, extra=extra)
