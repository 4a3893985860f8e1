"""The estimate of a pass's memory against torch's own record of its allocations."""

import pytest

from lsp.models.longformer import Longformer
from lsp.models.longformer_config import RESIDUALS, LongformerConfig
from lsp.models.memory import MemoryConfig
from tests.models.allocated import assert_estimate_is_close


def tiny(residual: str, length: int, memory: dict, changes: dict) -> Longformer:
    config = {
        "attention_window": 128,
        "hidden_size": 64,
        "intermediate_size": 256,
        "max_position_embeddings": length + 2,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "vocab_size": 320,
    }
    return Longformer(LongformerConfig(**config | changes), MemoryConfig(residual, **memory))


CASES = {
    "default": {},
    "causal": {"is_decoder": True},
    "global tokens": {"global_tokens": 2},
    "global tokens of two rows": {"global_tokens": 2, "rows": 2, "length": 1024},
    "odd length": {"length": 2001},
    "gaps": {"attention_dilation": [1, 2, 4]},
    "wide windows": {"attention_window": [64, 512, 256]},
    "pieces": {"memory": {"tile_megabytes": 0.1}},
    "tiles of the head": {"memory": {"head_tiles": 8}, "vocab_size": 4000, "length": 1024},
    "vocabulary": {"vocab_size": 16000, "length": 1024},
    "untied": {"vocab_size": 16000, "length": 1024, "tie_word_embeddings": False},
    "relu, no dropout": {
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "bf16": {"half": True},
    "bf16, causal": {"half": True, "is_decoder": True, "length": 4096},
    "bf16, global tokens": {"half": True, "global_tokens": 2, "memory": {"tile_megabytes": 0.1}},
}


@pytest.mark.parametrize("residual", RESIDUALS["sequential"])
@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_close(tmp_path, residual, case):
    changes = dict(CASES[case])
    rows, length = changes.pop("rows", 1), changes.pop("length", 2048)
    half, memory = changes.pop("half", False), changes.pop("memory", {})
    model = tiny(residual, length, memory, changes)
    assert_estimate_is_close(model, rows, length, tmp_path / "trace", half=half)


def test_what_if_leaves_the_model_as_it_is():
    model = tiny("stored", 1024, {}, {})
    before = model.activation_bytes(1, 1024)
    other = model.activation_bytes(1, 1024, memory=MemoryConfig("auto", tile_megabytes=0.1))
    assert sum(other.values()) < sum(before.values())
    assert model.memory == MemoryConfig("stored")
    assert model.activation_bytes(1, 1024) == before
