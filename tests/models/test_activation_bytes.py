"""The estimate of a pass's memory against torch's own record of its allocations."""

import pytest

from lsp.models.memory import RESIDUALS, MemoryConfig
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from tests.models.allocated import assert_estimate_is_close


def _model(residual: str, length: int, memory: dict, changes: dict) -> Reformer:
    config = {
        "attn_layers": ["local", "lsh"] * 2,
        "hidden_size": 64,
        "attention_head_size": 16,
        "num_attention_heads": 4,
        "feed_forward_size": 256,
        "axial_pos_shape": [length // 64, 64],
        "axial_pos_embds_dim": [16, 48],
        "max_position_embeddings": length,
        "is_decoder": True,
    }
    return Reformer(ReformerConfig(**config | changes), MemoryConfig(residual, **memory))


CASES = {
    "default": {},
    "pieces": {"memory": {"attention_groups": 4, "tile_megabytes": 0.1}},
    "lsh": {"attn_layers": ["lsh"] * 4, "num_hashes": 4},
    "local": {"attn_layers": ["local"] * 4},
    "two rows": {"rows": 2, "length": 1024},
    "vocabulary": {"vocab_size": 16000, "length": 1024},
    "gelu": {"hidden_act": "gelu", "hidden_dropout_prob": 0.0},
    "bf16": {"half": True},
}


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_close(tmp_path, residual, case):
    changes = dict(CASES[case])
    rows, length = changes.pop("rows", 1), changes.pop("length", 2048)
    half, memory = changes.pop("half", False), changes.pop("memory", {})
    model = _model(residual, length, memory, changes)
    assert_estimate_is_close(model, rows, length, tmp_path / "trace", half=half)


def test_what_if_leaves_the_model_as_it_is():
    model = _model("stored", 1024, {}, {})
    before = model.activation_bytes(1, 1024)
    other = model.activation_bytes(1, 1024, memory=MemoryConfig("reversible", attention_groups=4))
    assert sum(other.values()) < sum(before.values())
    assert model.memory == MemoryConfig("stored")
    assert model.activation_bytes(1, 1024) == before
