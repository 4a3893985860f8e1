"""The estimate of a pass's memory against torch's own record of its allocations."""

import pytest

from lsp.models.mega import Mega
from lsp.models.mega_config import RESIDUALS, MegaConfig
from lsp.models.memory import MemoryConfig
from tests.models.allocated import assert_estimate_is_close


def tiny(residual: str, memory: dict, changes: dict) -> Mega:
    config = {
        "use_chunking": True,
        "chunk_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "shared_representation_size": 32,
        "nffn_hidden_size": 256,
        "num_hidden_layers": 3,
        "ema_projection_size": 8,
        "vocab_size": 320,
    }
    return Mega(MegaConfig(**config | changes), MemoryConfig(residual, **memory))


CASES = {
    "default": {},
    "causal, two rows": {"is_decoder": True, "bidirectional": False, "rows": 2, "length": 1024},
    "pieces": {"memory": {"tile_megabytes": 0.25}},
    "no dropout, wide values": {
        "intermediate_size": 256,
        "dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "nffn_activation_dropout_prob": 0.0,
    },
    "vocabulary": {"vocab_size": 16000, "length": 1024},
    "bf16": {"half": True},
}


QUICK = (("default", "stored"), ("default", "recomputed"), ("causal, two rows", "recomputed"))


def chosen(case: str, residual: str) -> object:
    marks = () if (case, residual) in QUICK else pytest.mark.slow
    return pytest.param(case, residual, marks=marks, id=f"{case}, {residual}")


@pytest.mark.parametrize(
    ("case", "residual"), [chosen(case, residual) for case in CASES for residual in RESIDUALS]
)
def test_the_estimate_is_close(tmp_path, residual, case):
    changes = dict(CASES[case])
    rows, length = changes.pop("rows", 1), changes.pop("length", 2048)
    half, memory = changes.pop("half", False), changes.pop("memory", {})
    model = tiny(residual, memory, changes)
    assert_estimate_is_close(model, rows, length, tmp_path / "trace", half=half)


def test_what_if_leaves_the_model_as_it_is():
    model = tiny("stored", {}, {})
    before = model.activation_bytes(1, 1024)
    other = model.activation_bytes(1, 1024, memory=MemoryConfig("auto", tile_megabytes=0.1))
    assert sum(other.values()) < sum(before.values())
    assert model.memory == MemoryConfig("stored")
    assert model.activation_bytes(1, 1024) == before
