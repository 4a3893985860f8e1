"""Models whose loss is of more than a row are certified by what their heads read."""

from __future__ import annotations

import pytest
import torch

from lsp.models.hub import attention, masks
from lsp.models.hub.adapter import HubModel
from lsp.verify.body import bodies
from lsp.verify.certify import certify
from lsp.verify.places import find_place
from tests.models.hub.tiny import LENGTH, VOCABULARY, settled


def model_of(model_type: str, objective: str) -> HubModel:
    from lsp.models.hub.build import build

    torch.manual_seed(0)
    return build(settled(model_type, objective))


def certified(model: HubModel, causal: bool = False):
    return certify(model, sequence_length=LENGTH, causal=causal, quick=True)


@pytest.mark.parametrize(
    ("model_type", "objective"),
    [("t5", "span_corruption"), ("xlnet", "permutation"), ("bert", "next_sentence")],
)
def test_holds(model_type: str, objective: str) -> None:
    found = certified(model_of(model_type, objective))
    assert found.holds, found
    assert len(bodies(model_of(model_type, objective), False)) == (2 if model_type == "t5" else 1)


def test_a_decoder_that_sees_other_documents_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the encoder's, by cross attention alone."""
    own = attention.documents

    def all_keys(segments, causal, keys=None):
        if keys is None:
            return own(segments, causal)
        return own(torch.ones_like(segments), False, torch.ones_like(keys))

    monkeypatch.setattr(masks.attention, "documents", all_keys)
    found = certified(model_of("t5", "span_corruption"))
    assert {leak.what for leak in found.leaks} == {"values", "gradients"}


def test_a_decoder_that_sees_what_it_predicts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own = attention.documents
    monkeypatch.setattr(
        masks.attention, "documents", lambda segments, _, keys=None: own(segments, False, keys)
    )
    found = certified(model_of("t5", "span_corruption"))
    assert any("later tokens" in str(leak) for leak in found.leaks)


def test_what_published_prophetnet_shows_of_later_tokens_is_found_before_training() -> None:
    """Its predicting streams (2001.04063) show it to the first tokens alone."""
    found = certified(model_of("prophetnet", "future_ngram"))
    assert {leak.what for leak in found.leaks} == {"values", "gradients"}
    assert all(leak.source == "later tokens" for leak in found.leaks)
    assert "relative positions" in found.known


def test_tokens_are_found_where_they_are_moved_before() -> None:
    """XLNet embeds positions first, and Longformer documents in rows of their own."""
    ids_BL = torch.randint(7, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    numbers_BL = torch.arange(2 * LENGTH).view(2, LENGTH)
    segments_BL = torch.ones_like(ids_BL)
    segments_BL[0, LENGTH // 2 :] = 2

    def place_in(model: HubModel) -> torch.Tensor:
        def read(ids: torch.Tensor) -> None:
            with torch.no_grad():
                model.logits(ids, segments_BL, None)

        return find_place(model, ids_BL, read).slots

    assert torch.equal(place_in(model_of("bert", "masked").eval()), numbers_BL)
    assert torch.equal(place_in(model_of("xlnet", "causal").eval()), numbers_BL.T)
    slots = place_in(model_of("longformer", "masked").eval())
    assert torch.equal(slots[0, : LENGTH // 2], numbers_BL[0, : LENGTH // 2])
    assert torch.equal(slots[1, : LENGTH // 2], numbers_BL[0, LENGTH // 2 :])
    assert torch.equal(slots[2, :LENGTH], numbers_BL[1])
