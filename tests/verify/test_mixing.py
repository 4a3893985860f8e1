"""The certificate holds for sound models, and every kind of leak is found, in whatever it shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsp.models.interface import LanguageModel
from lsp.verify import mixing
from lsp.verify.mixing import Mixing, examine
from tests.training.tiny import LENGTH, longformer
from tests.verify.leaky import (
    VOCABULARY,
    Remembering,
    attention_of,
    leaky,
    seeing_padding,
    sound,
    unmixed,
    without_documents,
)

torch.set_num_threads(1)


def examined(model: LanguageModel, causal: bool = True, **options: Any) -> Mixing:
    options = {"length": LENGTH, "vocab_size": VOCABULARY, "quick": True} | options
    return examine(model, causal=causal, **options)


def sides(found: Mixing) -> set[str]:
    """Whether leaks were found in values, in gradients, or in both."""
    return {leak.what for leak in found.leaks}


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "whole"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
def test_a_sound_model_is_certified(causal: bool, quick: bool):
    dropout = {"hidden_dropout_prob": 0.1, "local_attention_probs_dropout_prob": 0.1}
    found = examined(sound(causal, **dropout), causal, quick=quick)
    assert found.holds, found.problems
    assert (found.documents, found.causality) == ("apart", "causal" if causal else "both ways")
    numbers = (1, 2) if quick else (1, 2, 3, 4)
    for what in ("values", "gradients"):
        reaches = found.reaches[what]
        assert {pair for pair, seen in reaches.items() if seen} == {(n, n) for n in numbers}
        assert set(reaches) == {(a, b) for a in (0, *numbers) for b in numbers}


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kinds", [["local"] * 2, ["lsh"] * 2], ids=["local", "lsh"])
def test_a_layer_that_ignores_documents(kinds: list[str], layer: int):
    found = examined(without_documents(layer, attn_layers=kinds))
    assert sides(found) == {"values", "gradients"}
    assert found.reaches["values"][1, 2]
    assert found.reaches["gradients"][1, 2]
    assert any("document 1 changes the scores of document 2" in p for p in found.problems)


@pytest.mark.parametrize("only", ["values", "gradients"])
@pytest.mark.parametrize(
    "kind", ["the position before, over boundaries", "half a row away", "the mean of the row"]
)
def test_a_leak_between_documents_that_shows_in_one_alone(kind: str, only: str):
    found = examined(leaky(kind, only, causal=False), causal=False)
    assert sides(found) == {only}


@pytest.mark.parametrize("only", ["values", "gradients"])
def test_a_leak_from_the_future_that_shows_in_one_alone(only: str):
    found = examined(leaky("the position after", only))
    assert sides(found) == {only}
    assert any("later tokens" in problem for problem in found.problems)


@pytest.mark.parametrize("only", ["values", "gradients"])
def test_a_leak_between_the_rows_of_a_batch(only: str):
    found = examined(leaky("another row", only), quick=False)
    assert sides(found) == {only}
    assert any("row" in leak.source for leak in found.leaks)


@pytest.mark.parametrize("only", ["values", "gradients"])
def test_the_smallest_leak_is_one(only: str):
    assert sides(examined(leaky("the mean of the row", only, size=1e-6))) == {only}


def test_padding_that_is_seen():
    found = examined(seeing_padding(1), causal=False)
    assert {(leak.what, leak.source) for leak in found.leaks} == {
        ("values", "padding"),
        ("gradients", "padding"),
    }


def test_a_mask_that_is_off_by_one():
    model = sound()
    attention = attention_of(model)
    attend = attention.attend

    def late(qkv: Any, *more: Any) -> torch.Tensor:
        q_BLE, k_BLE, v_BLE = qkv
        # Where a query sees the key of its own place, it now sees the one behind it.
        out_BLE: torch.Tensor = attend((q_BLE, k_BLE.roll(-1, 1), v_BLE.roll(-1, 1)), *more)
        return out_BLE

    attention.attend = late
    found = examined(model)
    assert {leak.what for leak in found.leaks if "later" in leak.source} == {"values", "gradients"}


@pytest.mark.parametrize("make", [sound, longformer], ids=["reformer", "longformer"])
def test_a_model_that_sees_both_ways_is_not_causal(make: Any):
    model = make(causal=False) if make is sound else make()
    assert sides(examined(model, causal=True)) == {"values", "gradients"}


def test_a_model_that_mixes_nothing_is_not_certified():
    found = examined(unmixed())
    assert not found.leaks
    assert not found.holds
    assert {p.rpartition(" ")[2] for p in found.unseen} == {"(values)", "(gradients)"}


def test_a_model_that_learns_nothing_of_what_it_sees_is_not_certified():
    found = examined(unmixed("gradients"))
    assert {p.rpartition(" ")[2] for p in found.unseen} == {"(gradients)"}


def test_hashing_chooses_keys_but_shows_none_of_the_future():
    found = examined(sound(attn_layers=["lsh"] * 2), quick=False)
    assert found.holds, found.problems
    assert found.causality == mixing.CHOICE


@pytest.mark.parametrize("only", ["values", "gradients"])
def test_hashing_hides_no_leak(only: str):
    found = examined(leaky("the position after", only, attn_layers=["lsh"] * 2))
    assert sides(found) == {only}


def test_a_choice_of_keys_that_a_model_does_not_declare(monkeypatch: pytest.MonkeyPatch):
    model = sound(attn_layers=["lsh"] * 2)
    monkeypatch.setattr(model, "hold_sight", lambda held: False)
    found = examined(model, quick=False)
    assert sides(found) == {"values"}


def test_scores_that_are_no_numbers():
    model = sound()
    with torch.no_grad():
        model.lm_head.decoder.weight.fill_(torch.nan)
    found = examined(model)
    assert not found.holds
    assert not found.leaks


def test_scores_that_are_others_each_time():
    model, steps = sound(), iter(range(1, 10**6))
    logits = model.logits
    model.logits = lambda *words: logits(*words) + next(steps)  # type: ignore[method-assign]
    found = examined(model)
    assert not found.leaks
    assert found.problems == [
        "the same tokens give other scores each time: nothing can be said of changes"
    ]


def test_a_model_that_does_not_keep_documents_apart():
    found = examined(without_documents(0), apart=False, quick=False)
    assert found.holds, found.problems
    assert found.documents == "together"
    assert not examined(leaky("the position after"), apart=False).holds


class TestMemory:
    def test_of_the_same_document_alone(self):
        for quick in (True, False):
            found = examined(Remembering("own"), memory_apart=True, quick=quick)
            assert found.holds, found.problems
            assert found.memory == "of its own document"

    @pytest.mark.parametrize("kind", ["everything", "for all"])
    def test_of_other_documents(self, kind: str):
        for quick in (True, False):
            found = examined(Remembering(kind), memory_apart=True, quick=quick)
            assert any("memory" in leak.source for leak in found.leaks), (kind, quick)

    def test_that_documents_share_is_said(self):
        found = examined(Remembering("for all"), memory_apart=False, apart=False, quick=False)
        assert found.holds, found.problems
        assert found.memory == "of all documents"

    def test_that_is_not_there(self):
        found = examined(Remembering("nothing"), memory_apart=True)
        assert found.unseen == ["nothing is remembered"]

    def test_that_is_not_used(self):
        model = Remembering("own")
        model.recall = lambda memory: None  # type: ignore[method-assign]
        found = examined(model, memory_apart=True)
        assert "what is remembered of a document is not seen by its next part" in found.unseen

    def test_with_a_graph(self):
        found = examined(Remembering("own", attached=True), memory_apart=True)
        assert any(leak.what == "gradients" for leak in found.leaks)


class TestTracelessness:
    @pytest.mark.parametrize("name", ["reformer", "longformer"])
    def test_the_model_and_the_generators_are_as_before(self, name: str):
        model = longformer(global_tokens=1) if name == "longformer" else sound(False)
        model.eval()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        generators = torch.get_rng_state()
        found = examined(model, causal=False)
        assert found.holds, found.problems
        assert torch.equal(torch.get_rng_state(), generators)
        assert not model.training
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    @pytest.mark.parametrize("name", ["reformer", "longformer"])
    def test_the_next_gradients_are_as_without(self, name: str):
        def gradients(certified: bool) -> dict[str, torch.Tensor]:
            torch.manual_seed(0)
            model = longformer() if name == "longformer" else sound(False)
            if certified:
                examined(model, causal=False)
            ids = torch.randint(0, 64, (2, LENGTH), generator=torch.Generator().manual_seed(0))
            model.begin_micro_batch(3)
            model(ids, ids)[0].backward()
            return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

        plain, after = gradients(False), gradients(True)
        assert plain.keys() == after.keys()
        assert all(torch.equal(plain[n], after[n]) for n in plain)
