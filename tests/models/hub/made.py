"""Tiny models for tests of losses, and their published twins."""

from __future__ import annotations

from typing import Any

import torch

from lsp.models.hub import keys
from lsp.models.hub.adapter import HubModel
from lsp.models.hub.build import build
from lsp.models.hub.config import HubConfig, resolve
from lsp.models.memory import MemoryConfig
from tests.models.hub.tiny import LENGTH, SPECIAL_IDS, VOCABULARY, tiny

TEXT = range(8, VOCABULARY)
"""Tokens without a role."""
Batch = dict[str, torch.Tensor]


def make(
    model_type: str,
    objective: str,
    *,
    length: int = LENGTH,
    tiles: int = 3,
    generator: dict[str, Any] | None = None,
    memory: MemoryConfig | None = None,
    **init: Any,
) -> HubModel:
    """A model without dropout, as in evaluation; gradients come all the same."""
    config = resolve(
        HubConfig(
            model_type=model_type,
            model_init_config=tiny(model_type) | init,
            generator=generator or {},
        ),
        vocab_size=VOCABULARY,
        sequence_length=length,
        objective=objective,
        special_ids=SPECIAL_IDS | {"decoder_start": SPECIAL_IDS["eos"]},
    )
    torch.manual_seed(0)
    hub = build(config, memory or MemoryConfig(residual="stored", head_tiles=tiles))
    return hub.eval()


def published(hub: HubModel) -> Any:
    """The same model as `transformers` makes it, with the same weights."""
    assert hub.config.model_type is not None
    config = keys.make_config(hub.config.model_type, hub.config.settled)
    config.num_labels = hub.model.config.num_labels
    model = type(hub.model)(config)
    model.load_state_dict(hub.model.state_dict())
    return model.eval()


def text(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """(rows, length) random tokens without a role."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TEXT.start, TEXT.stop, (rows, length), generator=generator)


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every weight that has one."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], prefix: str = "model."
) -> None:
    """Compares all that have one there; weights that only we use have a gradient of zero."""
    for name, grad in theirs.items():
        torch.testing.assert_close(
            ours[prefix + name], grad, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name in ours.keys() - {prefix + name for name in theirs}:
        assert not ours[name].any(), name
