"""Weights of Transformer-XL under their published names, in both directions.

The modules carry the published names, but for the projections of clusters, which are modules here
and plain tensors there. Published files besides hold the frequencies of sinusoids, where there are
any, and may leave out what is tied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from lsp.models.published_weights import check_weights
from lsp.models.transformer_xl import TransformerXL
from lsp.models.transformer_xl_config import ABSOLUTE, RELATIVE, TransformerXLConfig
from lsp.models.transformer_xl_stack import WAVELENGTH

FREQUENCIES = "transformer.pos_emb.inv_freq"
PROJECTIONS = re.compile(r"(emb_projs|out_projs)\.(\d+)$")
OUR_PROJECTIONS = re.compile(r"(emb_projs|out_projs)\.(\d+)\.weight$")


def to_published(
    state_dict: Mapping[str, torch.Tensor], config: TransformerXLConfig
) -> dict[str, torch.Tensor]:
    """The weights of a trained model under their published names; no copies."""
    weights = {
        OUR_PROJECTIONS.sub(r"\1.\2", name): weight.detach() for name, weight in state_dict.items()
    }
    return weights | frequencies(config)


def frequencies(config: TransformerXLConfig) -> dict[str, torch.Tensor]:
    """What published files hold of sinusoids: (D / 2,), or nothing where positions are learned."""
    if config.attn_type not in (RELATIVE, ABSOLUTE):
        return {}
    even_D = torch.arange(0, config.d_model, 2, dtype=torch.float32)
    return {FREQUENCIES: 1 / (WAVELENGTH ** (even_D / config.d_model))}


def from_published(
    state_dict: Mapping[str, torch.Tensor], config: TransformerXLConfig
) -> dict[str, torch.Tensor]:
    """The weights of a published model, ready for `TransformerXL(config).load_state_dict`.

    Raises:
        UserError: A weight is missing, unknown or of another shape than the config says.
    """
    with torch.device("meta"):
        model = TransformerXL(config)
    expected = {name: tuple(w.shape) for name, w in model.state_dict().items()}
    weights = {
        PROJECTIONS.sub(r"\1.\2.weight", name): weight
        for name, weight in state_dict.items()
        if name != FREQUENCIES
    }
    # Names of one weight: any of them will do.
    same: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    for names in same.values():
        known = [weights[name] for name in names if name in weights]
        if known:
            weights |= {name: weights.get(name, known[0]) for name in names}
    check_weights(weights, expected, "a Transformer-XL", "n_layer, cutoffs and div_val")
    return weights
