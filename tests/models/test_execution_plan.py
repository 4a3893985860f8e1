"""The number of pieces that a model says it computes in is the number that it does."""

from collections import Counter

import pytest
import torch

from lsp.models.memory import MemoryConfig
from tests.training.tiny import LENGTH, reformer

TILED = MemoryConfig(tile_megabytes=0.002, attention_groups=2, head_tiles=3)


@pytest.mark.parametrize("memory", [MemoryConfig(), TILED], ids=["whole", "tiled"])
def test_each_piece_is_one_call_in_which_weights_are_gathered(memory):
    model = reformer(num_attention_heads=4, memory=memory).eval()
    calls: Counter[str] = Counter()

    def count(name):
        return lambda *_: calls.update([name])

    for number, layer in enumerate(model.reformer.encoder.layers):
        for name, branch in layer.named_children():
            branch.output.register_forward_hook(count(f"{name} {number}"))
    model.lm_head.register_forward_hook(count("the head"))
    ids = torch.randint(0, 64, (2, LENGTH))
    model(ids, ids)
    plan = model.execution_plan(2, LENGTH)
    assert dict(calls) == plan
    assert all((pieces > 1) == (memory is TILED) for pieces in plan.values())
