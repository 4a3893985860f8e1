"""The estimate of a pass's memory against torch's own record of its allocations."""

import pytest

from lsp.models.memory import MemoryConfig
from lsp.models.nezha import Nezha
from lsp.models.nezha_config import RESIDUALS, NezhaConfig
from tests.models.allocated import assert_estimate_is_close


def tiny(residual: str, length: int, memory: dict, changes: dict) -> Nezha:
    config = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "max_position_embeddings": length,
        "max_relative_position": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "vocab_size": 320,
    }
    return Nezha(NezhaConfig(**config | changes), MemoryConfig(residual, **memory))


CASES = {
    "default": {},
    "causal": {"is_decoder": True},
    "pieces": {"memory": {"tile_megabytes": 0.1}},
    "two rows, untied, of many words": {
        "rows": 2,
        "length": 256,
        "vocab_size": 16000,
        "tie_word_embeddings": False,
    },
    "relu, no dropout": {
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "bf16": {"half": True},
}


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_close(tmp_path, residual, case):
    changes = dict(CASES[case])
    rows, length = changes.pop("rows", 1), changes.pop("length", 1024)
    half, memory = changes.pop("half", False), changes.pop("memory", {})
    model = tiny(residual, length, memory, changes)
    assert_estimate_is_close(model, rows, length, tmp_path / "trace", half=half)
