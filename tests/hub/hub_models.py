"""Architectures of `transformers` that are very small, and what they are exported to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from lsp.hub import reload
from lsp.hub.comparison import TOLERANCE, _random_ids
from lsp.hub.export import write_model
from lsp.hub.hub_forms import form_of
from lsp.hub.weights import fingerprint
from lsp.models.hub.adapter import HubModel
from lsp.models.hub.build import build
from lsp.models.hub.config import HubConfig, resolve
from tests.hub.tiny import shaken

LENGTH = 64
SPECIAL_IDS = {"pad": 0, "eos": 1, "bos": 2, "cls": 2, "sep": 1, "mask": 3}
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "intermediate_size": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_key_value_heads": 1},
}
DEPTH = {"num_hidden_layers": 2, "num_attention_heads": 2}


def tiny(model_type: str, objective: str, **changes: Any) -> HubModel:
    """A model whose every weight is away from where it began."""
    values = SIZES[model_type] | ({} if model_type == "gpt2" else DEPTH) | changes
    config = resolve(
        HubConfig(model_type, values),
        vocab_size=60,
        sequence_length=LENGTH,
        objective=objective,
        special_ids=SPECIAL_IDS,
    )
    return shaken(build(config))


def assert_opens_alike(model: HubModel, folder: Path, length: int = LENGTH) -> Any:
    """The folder that is written opens in plain `transformers` as the same model.

    As `lsp export` has it, but in this process and at one length.

    Returns:
        The model of `transformers`.
    """
    form = form_of(model.config)
    published = form.to_published(model.state_dict(), model.config)
    described = write_model(folder, form, model.config, published)
    theirs, info = getattr(transformers, form.auto_class).from_pretrained(
        folder, output_loading_info=True, **form.opening
    )
    theirs.eval()
    assert type(theirs).__name__ == form.model_class
    complaints = reload.loading_complaints(info)
    complaints += reload.config_complaints(theirs.config, described)
    weights = {name: fingerprint(weight) for name, weight in published.items()}
    complaints += reload.weight_complaints(theirs, weights)
    assert not complaints, complaints
    if form.incomparable:
        return theirs
    ids_BL, places_L = _random_ids(model, length), torch.arange(length)
    with torch.no_grad():
        ours = form.some_logits(model.eval(), ids_BL, places_L)
        found = theirs(**form.inputs(model.config, ids_BL))[form.output]
    bound = TOLERANCE * max(1.0, float(ours.abs().max()))
    difference = float((found - ours).abs().max())
    assert difference <= bound, f"logits differ by {difference}, of {bound / TOLERANCE} at most"
    return theirs


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Weights in the files of a folder, by the names that they have there."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: weight for file in files for name, weight in load_file(file).items()}
