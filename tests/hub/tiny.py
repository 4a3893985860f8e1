"""A Reformer, a tokenizer and evidence that are as small as they can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from data_pipelines.config import TokenizerConfig
from data_pipelines.tokenizers import save_tokenizer
from lsp.hub.card import Evidence
from lsp.hub.comparison import Comparison
from lsp.hub.export import export_model
from lsp.hub.importing import PublishedModel, read_published
from lsp.models.interface import LanguageModel
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig

Model = TypeVar("Model", bound=LanguageModel)

LENGTH = 64
VOCABULARY = 260


def tiny_config(**changes: Any) -> ReformerConfig:
    values: dict[str, Any] = {
        "attn_layers": ["local", "lsh"],
        "hidden_size": 32,
        "feed_forward_size": 64,
        "num_attention_heads": 2,
        "attention_head_size": 16,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 24],
        "max_position_embeddings": LENGTH,
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
        "num_hashes": 2,
        "num_buckets": 8,
        "vocab_size": VOCABULARY,
        "is_decoder": True,
        "eos_token_id": 1,
    }
    return ReformerConfig(**(values | changes))


def tiny_model(**changes: Any) -> Reformer:
    torch.manual_seed(0)
    return shaken(Reformer(tiny_config(**changes)))


def shaken(model: Model) -> Model:
    """Moves every weight: fresh norms and biases, ones and zeros, hide many mistakes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def write_byte_tokenizer(folder: Path) -> Path:
    save_tokenizer(TokenizerConfig(kind="bytes"), folder, texts=list)
    return folder


def tiny_evidence(**changes: Any) -> Evidence:
    values: dict[str, Any] = {
        "run_name": "tiny",
        "step": 7,
        "tokens": 448,
        "config": {"run_name": "tiny", "objective": {"name": "causal"}},
        "results": {"validation bits per byte": 2.5},
        "versions": {"torch": "1.2.3"},
    }
    return Evidence(**(values | changes))


def export_alone(
    model: LanguageModel, sequence_length: int, out: Path, **options: Any
) -> Comparison:
    """Exports a model without a tokenizer."""
    usual: dict[str, Any] = {"build": type(model), "tokenizer_path": None}
    return export_model(
        model,
        sequence_length=sequence_length,
        out=out,
        evidence=tiny_evidence(),
        **(usual | options),
    )


def assert_comes_back(model: LanguageModel, folder: Path) -> PublishedModel:
    """The folder holds the model's configuration and, bit for bit, its weights."""
    back = read_published(folder)
    assert back.config == model.config
    assert back.weights.keys() == model.state_dict().keys()
    assert all(torch.equal(back.weights[n], w) for n, w in model.state_dict().items())
    return back
