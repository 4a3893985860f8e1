"""The estimate of a pass's memory against torch's own record of its allocations."""

import pytest
import torch

from lsp.models.memory import MemoryConfig
from lsp.models.transformer_xl import TransformerXL
from lsp.models.transformer_xl_config import RESIDUALS, TransformerXLConfig
from tests.models.allocated import TOLERANCE, allocated

MEMORY = 512


def _model(residual, memory, changes):
    values = {
        "clamp_len": -1, "cutoffs": [], "d_embed": 64, "d_head": 16, "d_inner": 256, "d_model": 64,
        "div_val": 1, "mem_len": MEMORY, "n_head": 4, "n_layer": 3, "same_length": False,
        "vocab_size": 320,
    }  # fmt: skip
    return TransformerXL(TransformerXLConfig(**values | changes), MemoryConfig(residual, **memory))


def training_step(model, rows, length, half):
    # Of the last cluster: what they take is what the estimate is for.
    ids = torch.randint(model.config.cluster_ends[-1] // 2, model.config.vocab_size, (rows, length))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step():
        shape = (rows, model.config.mem_len)
        memory = {
            f"layer_{n}": torch.zeros(*shape, model.config.d_model)
            for n in range(model.config.n_layer)
        }
        if model.config.mem_len:
            model.recall({**memory, "segments": torch.ones(shape, dtype=torch.int64)})
        model.begin_micro_batch(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss, count = model(ids, ids)
        (loss / count).backward()

    return step


CASES = {
    "default": {},
    "a window": {"same_length": True, "clamp_len": 100, "rows": 2},
    "norms first": {"pre_lnorm": True},
    "untied": {"vocab_size": 16000, "length": 512, "tie_word_embeddings": False},
    "clusters": {"vocab_size": 16000, "length": 512, "cutoffs": [1000, 4000], "div_val": 2},
    "no dropout, no memory": {"dropout": 0.0, "mem_len": 0},
    "bf16, attention dropout": {"half": True, "dropatt": 0.1},
}


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_close(tmp_path, residual, case):
    changes = dict(CASES[case])
    rows, length = changes.pop("rows", 1), changes.pop("length", 1024)
    half, memory = changes.pop("half", False), changes.pop("memory", {})
    model = _model(residual, memory, changes)
    measured = allocated(training_step(model, rows, length, half), tmp_path / "trace")
    parts = model.activation_bytes(rows, length, half=half)
    assert sum(parts.values()) == pytest.approx(measured, rel=TOLERANCE), parts


def test_what_if_leaves_the_model_as_it_is():
    model = _model("stored", {}, {})
    before = model.activation_bytes(1, 1024)
    other = model.activation_bytes(1, 1024, memory=MemoryConfig("auto", tile_megabytes=0.1))
    assert sum(other.values()) < sum(before.values())
    assert model.memory == MemoryConfig("stored")
    assert model.activation_bytes(1, 1024) == before
