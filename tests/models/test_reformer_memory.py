"""Peak memory of a training step: the claims of the README, and cheap versions of them."""

from pathlib import Path

import pytest
import torch
import transformers

from benchmarks import reformer_memory
from lsp.models.memory import MemoryConfig
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from tests.models.allocated import allocated, training_step

LENGTH = 2048


def _config(layers: int, **changes) -> dict:
    return {
        "attn_layers": ["local", "lsh"] * (layers // 2),
        "hidden_size": 32,
        "attention_head_size": 16,
        "num_attention_heads": 4,
        "feed_forward_size": 128,
        "axial_pos_shape": [32, 64],
        "axial_pos_embds_dim": [8, 24],
        "num_buckets": 32,
        "is_decoder": True,
        **changes,
    }


def _activations(
    config: dict, trace: Path, residual: str = "reversible", length: int = LENGTH
) -> int:
    memory = MemoryConfig(residual, tile_megabytes=0.1, attention_groups=4)
    model = Reformer(ReformerConfig(**config), memory)
    return allocated(training_step(model, 1, length), trace)


def test_ten_more_layers_add_next_to_nothing(tmp_path: Path):
    shallow, deep = (_activations(_config(layers), tmp_path / str(layers)) for layers in (2, 12))
    assert deep < 1.05 * shallow


def test_what_is_kept_orders_the_modes(tmp_path: Path):
    modes = ("reversible", "recomputed", "stored")
    kept = [_activations(_config(6), tmp_path / mode, mode) for mode in modes]
    assert kept[0] < kept[1] < kept[2]


def test_an_eighth_of_transformers(tmp_path: Path):
    length = 8192
    config = _config(2, num_attention_heads=12, axial_pos_shape=[64, 128])
    config |= {
        "max_position_embeddings": length,
        "hidden_size": 64,
        "axial_pos_embds_dim": [16, 48],
    }
    model = transformers.ReformerModelWithLMHead(transformers.ReformerConfig(**config)).train()
    ids = torch.randint(0, 320, (1, length))

    def step() -> None:
        logits = model(ids).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()

    ours = _activations(config, tmp_path / "ours", length=length)
    assert ours < allocated(step, tmp_path / "theirs") / 8


@pytest.mark.slow
def test_sixteen_thousand_tokens_in_a_fresh_process():
    shallow, six, deep = (
        reformer_memory.run_fresh(reformer_memory.depth_spec(layers)) for layers in (2, 6, 12)
    )
    assert deep["activation_bytes"] < 1.05 * shallow["activation_bytes"]
    theirs = reformer_memory.run_fresh(reformer_memory.depth_spec(6, library="transformers"))
    assert six["activation_bytes"] < theirs["activation_bytes"] / 8


@pytest.mark.slow
@pytest.mark.parametrize(("length", "gigabytes"), [(65536, 2.5), (262144, 8)], ids=["64k", "256k"])
def test_long_sequences_in_a_fresh_process(length: int, gigabytes: float):
    result = reformer_memory.run_fresh(reformer_memory.long_spec(length))
    assert result["process_bytes"] < gigabytes * 1e9
