"""Models of the published sizes go out and come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsp.models import registry
from tests.hub.tiny import assert_comes_back, export_alone

LONGFORMER_BASE: dict[str, Any] = {
    "attention_window": [512] * 12,
    "vocab_size": 50265,
    "max_position_embeddings": 4098,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
ENWIK8: dict[str, Any] = {
    "attn_layers": ["local", "local", "lsh", "local"] * 3,
    "attention_head_size": 128,
    "num_attention_heads": 8,
    "hidden_size": 1024,
    "feed_forward_size": 4096,
    "axial_pos_embds_dim": [256, 768],
    "axial_pos_shape": [128, 512],
    "max_position_embeddings": 65536,
    "local_attn_chunk_length": 128,
    "lsh_attn_chunk_length": 256,
    "num_buckets": 512,
    "num_hashes": 4,
    "vocab_size": 258,
    "is_decoder": True,
}
# Architecture, config, length that is compared, and parameters: as many as the published class has,
# but for the Reformer's second bias, which nothing reads.
SIZES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "longformer-base-4096": ("longformer", LONGFORMER_BASE, 1024, 148_711_257),
    "longformer-base-4096, reversible, causal": (
        "longformer",
        LONGFORMER_BASE | {"residual": "reversible", "is_decoder": True},
        1024,
        148_712_793,
    ),
    "reformer-enwik8": ("reformer", ENWIK8, 1024, 149_182_464),
    "transfo-xl-wt103": ("transformer_xl", {"zero_memory": True}, 128, 285_205_322),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_a_model_of_the_published_size(name: str, tmp_path):
    architecture, values, length, parameters = SIZES[name]
    row = registry.get(architecture)
    torch.manual_seed(0)
    model = row.build(row.config_class(**values)).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    out = tmp_path / "out"
    found = export_alone(model, length, out, max_shard_size=400_000_000)
    assert [case.length for case in found.cases] == [128, length]
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert_comes_back(model, out)
