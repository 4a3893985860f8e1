"""What every process does as often as the others, as weights may be sharded over them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lsp.models.hub.masks import APART
from lsp.models.memory import MemoryConfig
from tests.models.hub.made import make, text
from tests.models.hub.tiny import LENGTH

CUTS = ((), (7,), (LENGTH // 2,), (3, 11, 20))


@pytest.mark.parametrize("model_type", APART)
def test_weights_are_used_as_often_whatever_the_documents_are(model_type: str) -> None:
    objective = "masked" if model_type == "longformer" else "denoising"
    # A tile of some positions: documents of other lengths would be cut into other numbers.
    model = make(model_type, objective, memory=MemoryConfig(tile_megabytes=1e-4, head_tiles=1))
    used: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm):
            module.register_forward_pre_hook(lambda *_, name=name: used.append(name))
    orders = []
    for cuts in CUTS:
        segments_L = torch.ones(LENGTH, dtype=torch.long)
        for cut in cuts:
            segments_L[cut:] += 1
        ids_BL, segments_BL = text(2, LENGTH), segments_L.expand(2, -1)
        batch = {"input_ids": ids_BL, "labels": ids_BL, "segment_ids": segments_BL}
        if objective == "denoising":
            batch |= {"decoder_input_ids": ids_BL, "decoder_segment_ids": segments_BL}
        used.clear()
        model(**batch)
        orders.append([*used])
    assert all(order == orders[0] for order in orders)
