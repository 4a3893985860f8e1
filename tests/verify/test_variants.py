"""Every native architecture, with every kind of attention that it has, is certified."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsp.models import registry
from lsp.models.reformer_config import ATTENTION_KINDS
from lsp.run.config import NATIVE
from lsp.verify.cells import all_cells
from lsp.verify.certify import certify
from lsp.verify.mixing import CHOICE
from lsp.verify.variants import LENGTH, SIZES, VARIANTS, Variant, build, config_of

torch.set_num_threads(1)

CASES = [(variant, objective) for variant in VARIANTS for objective in variant.objectives]


@pytest.mark.parametrize(
    ("variant", "objective"),
    CASES,
    ids=[f"{v.architecture}, {v.attention}, {objective}" for v, objective in CASES],
)
def test_holds(variant: Variant, objective: str):
    torch.manual_seed(0)
    causal = objective == "causal"
    model = build(variant, objective=objective, residual="auto")
    found = certify(model, sequence_length=LENGTH, causal=causal, quick=True)
    assert found.holds, found.problems
    hashes = "lsh" in variant.values.get("attn_layers", [])
    assert not causal or hashes or found.causality == "causal"
    across = variant.values.get("memory_across_documents", False)
    assert found.documents == ("together" if across else "apart")
    assert (found.memory is not None) == registry.get(variant.architecture).remembers


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "whole"])
def test_a_memory_that_every_first_document_sees(quick: bool, monkeypatch: pytest.MonkeyPatch):
    (variant,) = (v for v in VARIANTS if v.attention == "absolute")
    torch.manual_seed(0)
    model: Any = build(variant, objective="causal", residual="stored")
    documents_of = model.transformer._documents

    def generous(ids_BL: torch.Tensor, *others: Any) -> torch.Tensor:
        document_BE = documents_of(ids_BL, *others)
        document_BE[:, : -ids_BL.shape[1]] = 0  # the number of the row's first document
        return document_BE

    monkeypatch.setattr(model.transformer, "_documents", generous)
    found = certify(model, sequence_length=LENGTH, causal=True, quick=quick)
    assert [(leak.what, leak.source) for leak in found.leaks] == [
        ("values", "the memory of others")
    ]


def test_hashing_with_a_row_of_many_chunks_is_said_to_choose():
    (variant,) = (v for v in VARIANTS if v.attention == "lsh")
    torch.manual_seed(0)
    model = build(variant, objective="causal", residual="auto")
    assert certify(model, sequence_length=LENGTH, causal=True, quick=True).causality == CHOICE


def test_no_architecture_and_no_attention_is_left_out():
    assert {variant.architecture for variant in VARIANTS} == set(NATIVE)
    assert set(SIZES) == set(NATIVE)
    for name in NATIVE:
        architecture = registry.get(name)
        tried = {o for v in VARIANTS if v.architecture == name for o in v.objectives}
        possible = architecture.objectives(architecture.config_class())
        # Others see what one of these does.
        assert tried == {"causal", "masked"} & set(possible)
    kinds = {tuple(v.values["attn_layers"]) for v in VARIANTS if v.architecture == "reformer"}
    assert kinds >= {(kind, kind) for kind in ATTENTION_KINDS}
    types = {v.values.get("attn_type", 0) for v in VARIANTS if v.architecture == "transformer_xl"}
    assert types == set(range(4))


def test_cells_are_every_way_to_compute_each():
    cells = list(all_cells())
    assert len(set(cells)) == len(cells)
    for variant, objective in CASES:
        own = [c for c in cells if c.variant == variant and c.objective == objective]
        config = config_of(variant, objective=objective)
        residuals = registry.get(variant.architecture).residuals(config)
        # Its one head cannot be dealt out.
        degrees = (1,) if variant.architecture == "mega" else (1, 2)
        assert {(c.memory, c.degree) for c in own} == {(m, d) for m in residuals for d in degrees}
        assert {c.degree for c in own if c.precision == "bf16"} == set(degrees)
