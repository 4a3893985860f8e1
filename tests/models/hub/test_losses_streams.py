"""Losses of several streams: ProphetNet's, XLNet's; and of Splinter's questions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers.models.prophetnet import modeling_prophetnet

from lsp.core.batch import IGNORE_INDEX
from lsp.models.hub.adapter import HubModel
from lsp.models.hub.build import build
from lsp.models.hub.config import HubConfig, resolve
from lsp.models.hub.example import example
from lsp.models.hub.losses import encoder_decoder
from lsp.models.hub.losses.permutation import mapping, places, unseen
from lsp.models.memory import MemoryConfig
from tests.models.hub.made import Batch, assert_same_gradients, gradients, make, published, text
from tests.models.hub.tiny import LENGTH, VOCABULARY

FIXTURE = Path(__file__).parents[2] / "fixtures" / "xlm-prophetnet"


@pytest.fixture(scope="module")
def fixture() -> Batch:
    return load_file(FIXTURE.with_suffix(".safetensors"))


def xlm_prophetnet(fixture: Batch, **more: object) -> HubModel:
    """The model of transformers 4.37.2, the last release in which this name could be trained."""
    facts = json.loads(FIXTURE.with_suffix(".json").read_text())
    given = {k.removeprefix("cfg/"): v for k, v in facts.items() if k.startswith("cfg/")}
    special = {
        name.removesuffix("_token_id"): given[name] for name in given if name.endswith("_id")
    }
    config = resolve(
        HubConfig(model_type="xlm-prophetnet", model_init_config=given | more),
        vocab_size=given["vocab_size"],
        sequence_length=128,
        objective="future_ngram",
        special_ids=special,
    )
    hub = build(config, MemoryConfig(residual="stored"))
    state = {k.removeprefix("state/"): v for k, v in fixture.items() if k.startswith("state/")}
    hub.model.load_state_dict(state)
    return hub.eval()


def fixture_batch(fixture: Batch) -> Batch:
    labels_BT, ids_BL = fixture["batch/labels"], fixture["batch/input_ids"]
    start_B1 = torch.zeros(len(labels_BT), 1, dtype=torch.long)
    return {
        "input_ids": ids_BL,
        "segment_ids": fixture["batch/attention_mask"],
        "labels": labels_BT,
        "decoder_input_ids": torch.cat([start_B1, labels_BT[:, :-1]], dim=1),
        "decoder_segment_ids": torch.ones_like(labels_BT),
    }


def test_xlm_prophetnet_is_what_it_was(fixture: Batch) -> None:
    hub, batch = xlm_prophetnet(fixture), fixture_batch(fixture)
    with torch.no_grad():
        loss_sum, count = hub(**batch)
        logits = hub.logits(**{name: x for name, x in batch.items() if name != "labels"})
    torch.testing.assert_close(loss_sum / count, fixture["out/loss"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, fixture["out/logits"], atol=1e-4, rtol=1e-4)
    assert count == batch["labels"].numel()


PARAMETERS = [
    "prophetnet.word_embeddings.weight",
    "prophetnet.encoder.layers.1.self_attn.query_proj.weight",
    "prophetnet.decoder.ngram_embeddings.weight",
    "prophetnet.decoder.layers.0.self_attn.relative_pos_embeddings.weight",
    "prophetnet.decoder.layers.1.cross_attn.value_proj.bias",
]


def test_gradients_of_xlm_prophetnet_are_finite_differences(
    fixture: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The published softmax is in float32, whatever its input is, and so is a mask of whole numbers.
    monkeypatch.setattr(
        modeling_prophetnet, "softmax", lambda scores, dim, onnx_trace=False: scores.softmax(dim)
    )
    published_arguments = encoder_decoder.arguments

    def in_double(*args: Any) -> tuple[dict[str, Any], ...]:
        sides = published_arguments(*args)
        return tuple({name: x.double() for name, x in side.items()} for side in sides)

    monkeypatch.setattr(encoder_decoder, "arguments", in_double)
    hub = xlm_prophetnet(fixture).double()
    batch = {name: x[:1, :16] for name, x in fixture_batch(fixture).items()}
    grads = gradients(hub, hub(**batch)[0])
    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    for name in PARAMETERS:
        parameter = hub.get_parameter(f"model.{name}")
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        found = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * step)
                found.append(double_loss(hub, batch))
                parameter.sub_(direction, alpha=sign * step)
        expected = (found[0] - found[1]) / (2 * step)
        slope = (grads[f"model.{name}"] * direction).sum()
        assert float(slope) == pytest.approx(expected, rel=1e-6, abs=1e-7), name


def double_loss(hub: HubModel, batch: Batch) -> float:
    """The loss in float64; ours adds up in float32, as training does."""
    own = hub._batch(position_ids=None, **batch)
    _, decoder = encoder_decoder.run(hub, own)
    scores_BSV = hub.head.scores(decoder.last_hidden_state_ngram)
    labels_BS = batch["labels"].repeat(1, hub.model.config.ngram)
    total = F.cross_entropy(scores_BSV.flatten(0, 1), labels_BS.flatten(), reduction="sum")
    return float(total) / hub.model.config.ngram


@pytest.mark.parametrize("keys", [{"ngram": 3}, {"disable_ngram_loss": True}, {"eps": 0.1}])
def test_streams_equal_the_published_loss(keys: dict[str, object]) -> None:
    hub = make("prophetnet", "future_ngram", **keys)
    batch = example("future_ngram", 16, VOCABULARY, rows=2, first_id=8)
    batch["labels"][0, 3:9] = IGNORE_INDEX
    loss_sum, count = hub(**batch)
    ours = gradients(hub, loss_sum / count)
    twin = published(hub)
    loss = twin(
        input_ids=batch["input_ids"],
        decoder_input_ids=batch["decoder_input_ids"],
        labels=batch["labels"],
    ).loss
    assert count == 26
    torch.testing.assert_close(loss_sum / count, loss, atol=2e-6, rtol=1e-6)
    assert_same_gradients(ours, gradients(twin, loss))


def permuted(rows: int = 2) -> Batch:
    """Rows of one document, of which six tokens are predicted in a random order."""
    ids_BL = text(rows, LENGTH)
    generator = torch.Generator().manual_seed(2)
    ranks_BL = torch.full_like(ids_BL, -1)
    for row in ranks_BL:
        row[torch.randperm(LENGTH, generator=generator)[:6]] = torch.arange(6)
    ones_BL = torch.ones_like(ids_BL)
    return {
        "input_ids": ids_BL,
        "labels": ids_BL.where(ranks_BL >= 0, IGNORE_INDEX),
        "permutation": ranks_BL,
        "segment_ids": ones_BL,
    }


def test_permutation_equals_the_published_loss() -> None:
    hub, batch = make("xlnet", "permutation"), permuted()
    loss_sum, count = hub(**batch)
    ours = gradients(hub, loss_sum / count)
    twin = published(hub)
    places_BK, labels_BK = places(batch["labels"])
    loss = twin(
        input_ids=batch["input_ids"],
        perm_mask=unseen(batch["permutation"], batch["segment_ids"]),
        target_mapping=mapping(places_BK, labels_BK, LENGTH),
        labels=labels_BK,
    ).loss
    assert count == 12
    torch.testing.assert_close(loss_sum / count, loss, atol=2e-6, rtol=1e-6)
    assert_same_gradients(ours, gradients(twin, loss))


def test_a_permutation_by_hand() -> None:
    unseen_LL = unseen(torch.tensor([[-1, 1, 0, -1]]), torch.tensor([[1, 1, 1, 2]]))[0]
    assert unseen_LL.tolist() == [
        [0, 1, 1, 1],  # sees nothing that is predicted
        [0, 1, 0, 1],  # the second of the order sees the first
        [0, 1, 1, 1],
        [1, 1, 1, 0],  # of another document
    ]


def test_a_predicted_token_sees_those_before_it_in_the_order() -> None:
    hub, batch = make("xlnet", "permutation"), permuted(1)
    rank_L = batch["permutation"][0]
    third = int((rank_L == 3).nonzero())

    def losses(changed: int) -> torch.Tensor:
        ids_BL = batch["input_ids"].clone()
        ids_BL[0, changed] = 8 + (ids_BL[0, changed] - 8 + 1) % (VOCABULARY - 8)
        return hub.token_losses(**(batch | {"input_ids": ids_BL}))[0]

    whole, ranks_T = hub.token_losses(**batch)[0], rank_L[rank_L >= 0]
    moved_T = (losses(third) - whole).abs() > 1e-6
    assert torch.equal(moved_T, ranks_T > 3)
    seen_by_all = int((rank_L < 0).nonzero()[0])
    assert ((losses(seen_by_all) - whole).abs() > 1e-7).all()


def test_a_token_of_which_nothing_is_seen_is_as_likely_as_any_other() -> None:
    hub = make("xlnet", "permutation")
    batch = permuted(1)
    batch["segment_ids"] = torch.ones_like(batch["segment_ids"])
    batch["segment_ids"][0, -1] = 2  # a document of one token
    batch["permutation"][0, -1], batch["labels"][0, -1] = 9, batch["input_ids"][0, -1]
    losses_T, hits_T = hub.token_losses(**batch)
    assert float(losses_T[-1]) == pytest.approx(math.log(VOCABULARY))
    assert not hits_T[-1]
    loss_sum, count = hub(**batch)
    assert count == len(losses_T)
    assert loss_sum.item() == pytest.approx(float(losses_T.sum()), rel=1e-5)


def test_spans_equal_the_published_loss() -> None:
    hub = make("splinter", "recurring_span")
    batch = {
        "input_ids": text(2, LENGTH),
        "segment_ids": torch.ones(2, LENGTH, dtype=torch.long),
        "question_positions": torch.tensor([[3, 9, 20], [5, IGNORE_INDEX, IGNORE_INDEX]]),
        "start_positions": torch.tensor([[11, 2, 7], [14, IGNORE_INDEX, IGNORE_INDEX]]),
        "end_positions": torch.tensor([[12, 2, 9], [14, IGNORE_INDEX, IGNORE_INDEX]]),
        "labels": torch.full((2, LENGTH), IGNORE_INDEX),
    }
    for row, place, start in ((0, 3, 11), (0, 9, 2), (0, 20, 7), (1, 5, 14)):
        batch["labels"][row, place] = start
    loss_sum, count = hub(**batch)
    ours = gradients(hub, loss_sum / count)
    twin = published(hub)
    # Published, questions that are not there have positions 0.
    loss = twin(
        input_ids=batch["input_ids"],
        attention_mask=batch["segment_ids"],
        **{name: x.clamp(min=0) for name, x in batch.items() if name.endswith("positions")},
    ).loss
    assert count == 4
    torch.testing.assert_close(loss_sum / count, loss, atol=2e-6, rtol=1e-6)
    assert_same_gradients(ours, gradients(twin, loss))


def test_questions_are_answered_from_their_own_document() -> None:
    hub = make("splinter", "recurring_span")
    batch = {
        "input_ids": text(1, LENGTH),
        "segment_ids": (torch.arange(LENGTH) // 16 + 1)[None],
        "question_positions": torch.tensor([[20]]),
        "start_positions": torch.tensor([[25]]),
        "end_positions": torch.tensor([[26]]),
        "labels": torch.full((1, LENGTH), IGNORE_INDEX),
    }
    batch["labels"][0, 20] = 25
    alone = {name: x[:, 16:] for name, x in batch.items() if x.shape[1] == LENGTH}
    alone["segment_ids"] = torch.ones_like(alone["segment_ids"])
    alone |= {name: x - 16 for name, x in batch.items() if name.endswith("_positions")}
    torch.testing.assert_close(hub(**batch)[0], hub(**alone)[0])
