"""Losses of published models: equal to the published ones, and to themselves however divided."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lsp.core.batch import IGNORE_INDEX, positions_from_segments
from lsp.core.errors import UserError
from lsp.core.objectives import DECODER, NEXT_TOKEN, PAIRS
from lsp.evaluation.position import PositionMeter
from lsp.models.hub.example import example
from lsp.models.hub.table import ROWS
from lsp.models.sampling import generate_ids
from tests.models.hub.made import (
    Batch,
    assert_same_gradients,
    gradients,
    make,
    published,
    text,
)
from tests.models.hub.tiny import LENGTH, SPECIAL_IDS, VOCABULARY

DECODERS = [
    name for name, row in ROWS.items() if row.kind == "encoder_decoder" and "prophet" not in name
]
PUBLISHED_PAIRS = {
    "albert": "sentence_order_label",
    "bert": "next_sentence_label",
    "big_bird": "next_sentence_label",
    "ernie": "next_sentence_label",
    "fnet": "next_sentence_label",
    "megatron-bert": "next_sentence_label",
    "mobilebert": "next_sentence_label",
}
OWN_PAIRS = ["nystromformer", "squeezebert", "yoso"]


def decoder_batch(length: int = LENGTH, targets: int = 16) -> Batch:
    """Two rows of one document that predict equally many tokens."""
    labels_BT = text(2, targets, seed=1)
    labels_BT[:, 12:] = IGNORE_INDEX
    start_B1 = torch.full((2, 1), SPECIAL_IDS["eos"])
    inputs_BT = torch.cat([start_B1, text(2, targets, seed=1)[:, :-1]], dim=1)
    ones_BL = torch.ones(2, length, dtype=torch.long)
    return {
        "input_ids": text(2, length),
        "labels": labels_BT,
        "segment_ids": ones_BL,
        "position_ids": positions_from_segments(ones_BL),
        "decoder_input_ids": inputs_BT,
        "decoder_segment_ids": ones_BL[:, :targets],
        "decoder_position_ids": positions_from_segments(ones_BL[:, :targets]),
    }


@pytest.mark.parametrize("model_type", DECODERS)
def test_decoder_loss_equals_published(model_type: str) -> None:
    hub = make(model_type, "denoising")
    if hasattr(hub.model, "final_logits_bias"):
        hub.model.final_logits_bias.normal_()
    batch = decoder_batch()
    loss_sum, count = hub(**batch)
    ours = gradients(hub, loss_sum / count)
    twin = published(hub)
    routed = {"output_router_logits": True} if "router" in ROWS[model_type].note else {}
    loss = twin(
        input_ids=batch["input_ids"],
        attention_mask=batch["segment_ids"],
        decoder_input_ids=batch["decoder_input_ids"],
        decoder_attention_mask=batch["decoder_segment_ids"],
        labels=batch["labels"],
        **routed,
    ).loss
    assert count == 24
    torch.testing.assert_close(loss_sum / count, loss, atol=2e-6, rtol=1e-6)
    assert_same_gradients(ours, gradients(twin, loss))


@pytest.mark.parametrize("model_type", PUBLISHED_PAIRS)
def test_pair_loss_equals_published(model_type: str) -> None:
    hub = make(model_type, "sentence_order")
    batch = example("sentence_order", LENGTH, VOCABULARY, rows=2, first_id=8)
    batch["labels"][:, 5:] = IGNORE_INDEX
    loss_sum, count = hub(**batch)
    ours = gradients(hub, loss_sum / count)
    twin = published(hub)
    given = {} if model_type == "fnet" else {"attention_mask": batch["segment_ids"]}
    loss = twin(
        input_ids=batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
        labels=batch["labels"],
        **{PUBLISHED_PAIRS[model_type]: batch["pair_labels"][:, 0]},
        **given,
    ).loss
    assert count == 10
    torch.testing.assert_close(loss_sum / count, loss, atol=2e-6, rtol=1e-6)
    assert_same_gradients(ours, gradients(twin, loss))


@pytest.mark.parametrize("model_type", OWN_PAIRS)
def test_pairs_where_the_published_class_judges_none(model_type: str) -> None:
    hub = make(model_type, "sentence_order")
    batch = example("sentence_order", LENGTH, VOCABULARY, rows=2, first_id=8)
    batch["labels"][:, 5:] = IGNORE_INDEX
    loss_sum, count = hub(**batch)
    grads = gradients(hub, loss_sum / count)
    output = published(hub)(
        input_ids=batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
        output_hidden_states=True,
    )
    tokens = F.cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())
    first_BD = output.hidden_states[-1][:, 0]
    pooler = hub.pair_head.pooler or hub.model.base_model.pooler.dense
    scores_B2 = hub.pair_head.seq_relationship(torch.tanh(pooler(first_BD)))
    judged = F.cross_entropy(scores_B2, batch["pair_labels"][:, 0])
    torch.testing.assert_close(loss_sum / count, tokens + judged, atol=2e-6, rtol=1e-6)
    assert grads["pair_head.seq_relationship.weight"].any()


def test_several_pairs_of_a_row_are_weighted_alike() -> None:
    hub = make("bert", "next_sentence")
    batch = example("next_sentence", LENGTH, VOCABULARY, rows=2, first_id=8)
    batch["labels"][0, 3:] = IGNORE_INDEX
    batch["labels"][1, 6:] = IGNORE_INDEX
    tokens = hub(**(batch | {"pair_labels": torch.full((2, 1), IGNORE_INDEX)}))[0]
    one_by_one = [
        hub(**(batch | {"pair_labels": torch.tensor(pair)}))[0] - tokens
        for pair in ([[0], [IGNORE_INDEX]], [[IGNORE_INDEX], [1]])
    ]
    two = {
        "pair_positions": torch.tensor([[0, 0], [0, 0]]),
        "pair_labels": torch.tensor([[0, 0], [1, IGNORE_INDEX]]),
    }
    # The same pair twice is judged as once; each row counts by its predicted tokens, 3 and 6.
    torch.testing.assert_close(hub(**(batch | two))[0] - tokens, sum(one_by_one))
    assert 0.3 < one_by_one[0].item() / (3 * math.log(2)) < 3


def test_mixtral_learns_with_its_routers_loss() -> None:
    hub = make("mixtral", "causal")
    batch = example("causal", LENGTH, VOCABULARY, rows=2, first_id=8)
    loss_sum, count = hub(**batch)
    ours = gradients(hub, loss_sum / count)
    twin = published(hub)
    loss = twin(input_ids=batch["input_ids"], labels=batch["input_ids"], output_router_logits=True)
    assert loss.aux_loss > 0
    torch.testing.assert_close(loss_sum / count, loss.loss, atol=2e-6, rtol=1e-6)
    assert_same_gradients(ours, gradients(twin, loss.loss))


def test_rows_that_fill_up_keep_no_expert_busy() -> None:
    hub = make("mixtral", "causal")
    batch = example("causal", LENGTH, VOCABULARY, rows=2, first_id=8)
    filled = {name: torch.cat([x, x[:1].roll(3, 1)]) for name, x in batch.items()}
    filled["labels"][2] = IGNORE_INDEX
    torch.testing.assert_close(hub(**filled), hub(**batch), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("model_type", ["nllb-moe", "switch_transformers"])
def test_idle_experts_have_a_gradient_of_zero(model_type: str) -> None:
    hub = make(model_type, "denoising", num_experts=8)
    batch = {name: tensor[:1] for name, tensor in decoder_batch().items()}
    batch["input_ids"] = batch["input_ids"] * 0 + 9
    grads = gradients(hub, hub(**batch)[0])
    experts = [name for name, _ in hub.named_parameters() if ".experts." in name]
    assert experts
    assert not {name for name, _ in hub.named_parameters()} - grads.keys()
    assert any(not grads[name].any() for name in experts)
    assert any(grads[name].any() for name in experts)


def row_batch(objective: str) -> Batch:
    """Three rows: two documents, one with padding, and one that predicts nothing."""
    batch = example(objective, LENGTH, VOCABULARY, rows=3, first_id=8)
    segments_BL = torch.ones(3, LENGTH, dtype=torch.long)
    segments_BL[0, 14:], segments_BL[1, 24:] = 2, 0
    batch |= {"segment_ids": segments_BL, "position_ids": positions_from_segments(segments_BL)}
    batch["input_ids"] = batch["input_ids"].where(segments_BL != 0, SPECIAL_IDS["pad"])
    if objective in DECODER:
        batch["decoder_segment_ids"] = segments_BL
        batch["decoder_position_ids"] = batch["position_ids"]
    if objective == "recurring_span":
        batch["labels"][0, 20] = 18
        batch["question_positions"] = torch.tensor([[0, 20], [0, IGNORE_INDEX], [4, 0]])
        batch["start_positions"] = torch.tensor([[2, 18], [2, IGNORE_INDEX], [5, 2]])
        batch["end_positions"] = torch.tensor([[3, 18], [3, IGNORE_INDEX], [6, 3]])
    else:
        batch["labels"] = batch["labels"].masked_fill(segments_BL == 0, IGNORE_INDEX)
        batch["labels"][0, 25:] = IGNORE_INDEX
        if objective in PAIRS:
            batch["pair_positions"] = torch.tensor([[0, 14], [0, 0], [0, 0]])
            batch["pair_labels"] = torch.tensor([[1, 0], [1, IGNORE_INDEX], [0, IGNORE_INDEX]])
    batch["labels"][2] = IGNORE_INDEX
    return batch


FAMILIES = [
    ("t5", "span_corruption"),
    ("bart", "gap_sentences"),
    ("switch_transformers", "span_corruption"),
    ("bert", "next_sentence"),
    ("albert", "sentence_order"),
    ("xlnet", "permutation"),
    ("electra", "replaced_token"),
    ("deberta-v2", "replaced_token"),
    ("prophetnet", "future_ngram"),
    ("splinter", "recurring_span"),
]


@pytest.mark.parametrize(("model_type", "objective"), FAMILIES)
def test_rows_add_up_however_they_come_together(model_type: str, objective: str) -> None:
    hub = make(model_type, objective)
    batch = row_batch(objective)
    loss_sum, count = hub(**batch)
    whole = gradients(hub, loss_sum)
    hub.zero_grad(set_to_none=True)
    sums, counts = 0.0, 0
    for rows in ([2, 0], [1]):
        part_sum, part_count = hub(**{name: x[rows] for name, x in batch.items()})
        part_sum.backward()
        sums, counts = sums + part_sum.item(), counts + int(part_count)
    assert count == counts == (batch["labels"] != IGNORE_INDEX).sum()
    assert sums == pytest.approx(loss_sum.item(), rel=1e-5)
    for name, parameter in hub.named_parameters():
        if name in whole:
            torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("model_type", "objective"), FAMILIES)
def test_tiles_change_nothing(model_type: str, objective: str) -> None:
    batch = row_batch(objective)
    found = []
    for tiles in (1, 5):
        hub = make(model_type, objective, tiles=tiles)
        loss_sum, _ = hub(**batch)
        found.append((loss_sum, gradients(hub, loss_sum)))
    (whole, whole_grads), (tiled, tiled_grads) = found
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)
    assert whole_grads.keys() == tiled_grads.keys()
    for name, grad in whole_grads.items():
        torch.testing.assert_close(tiled_grads[name], grad, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("model_type", "objective"), FAMILIES)
def test_weights_may_be_in_half_precision(model_type: str, objective: str) -> None:
    hub, batch = make(model_type, objective), row_batch(objective)
    exact = hub(**batch)[0]
    rounded = hub.bfloat16()(**batch)[0]
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.0)
    # Sharded weights are parts of a larger tensor, which they have to remain.
    assert {parameter.dtype for parameter in hub.parameters()} == {torch.bfloat16}
    assert all(grad.isfinite().all() for grad in gradients(hub, rounded).values())


@pytest.mark.parametrize(
    ("model_type", "objective"),
    [pair for pair in FAMILIES if pair[1] in (*DECODER, "permutation", "recurring_span")],
)
def test_losses_of_tokens_add_up(model_type: str, objective: str) -> None:
    hub = make(model_type, objective, **({"ngram": 1} if model_type == "prophetnet" else {}))
    if model_type == "switch_transformers":
        hub.model.config.router_aux_loss_coef = hub.model.config.router_z_loss_coef = 0.0
    batch = row_batch(objective)
    losses_T, hits_T = hub.token_losses(**batch)
    loss_sum, count = hub(**batch)
    assert losses_T.shape == hits_T.shape == (count,)
    torch.testing.assert_close(losses_T.sum(), loss_sum.detach(), rtol=1e-5, atol=1e-5)


def test_losses_of_tokens_are_in_the_order_of_labels() -> None:
    hub = make("splinter", "recurring_span")
    batch = row_batch("recurring_span")
    losses_T, _ = hub.token_losses(**batch)
    backwards = dict(batch)
    for name in ("question_positions", "start_positions", "end_positions"):
        backwards[name] = batch[name].flip(1)
    torch.testing.assert_close(hub.token_losses(**backwards)[0], losses_T)


def test_a_discriminator_has_no_losses_of_tokens() -> None:
    hub = make("electra", "replaced_token")
    with pytest.raises(UserError, match="tells tokens apart"):
        hub.token_losses(**row_batch("replaced_token"))


@pytest.mark.parametrize("model_type", ["t5", "bart", "led", "pegasus_x"])
def test_a_decoder_writes_what_the_published_one_does(model_type: str) -> None:
    hub = make(model_type, ROWS[model_type].objectives[0])
    with torch.no_grad():
        for parameter in hub.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)  # or all tokens are as likely
    prompt_BL = text(1, 24)
    cache, unread, written = hub.new_cache(), prompt_BL, []
    for _ in range(6):
        scores_BV = hub.step(unread, cache)
        unread = scores_BV.argmax(-1, keepdim=True)
        written.append(int(unread))
    ids_BT = torch.tensor([[SPECIAL_IDS["eos"], *written]])
    scores_BTV = hub.logits(prompt_BL, decoder_input_ids=ids_BT[:, :-1])
    torch.testing.assert_close(scores_BTV[:, -1], scores_BV)
    theirs: Any = published(hub)
    scores = theirs(input_ids=prompt_BL, decoder_input_ids=ids_BT[:, :-1], use_cache=False).logits
    torch.testing.assert_close(scores_BTV, scores, rtol=1e-4, atol=1e-5)
    assert scores.argmax(-1)[0].tolist() == written
    prompt_ids = prompt_BL[0].tolist()
    for cache in (True, False):
        options: dict[str, Any] = {"max_new_tokens": 6, "greedy": True, "cache": cache}
        assert list(generate_ids(hub, prompt_ids, **options)) == written


def test_positions_of_an_answer_are_the_decoders() -> None:
    hub, batch = make("t5", "span_corruption"), decoder_batch()
    meter = PositionMeter(hub)
    loss_sum, count = meter(batch)
    torch.testing.assert_close(loss_sum.float(), hub(**batch)[0].detach())
    assert count == sum(bucket.sums.count for bucket in meter.buckets) == 24


def test_published_objectives_come_first() -> None:
    assert ROWS["t5"].objectives[0] == "span_corruption"
    assert ROWS["pegasus"].objectives[0] == "gap_sentences"
    assert ROWS["electra"].objectives[0] == "replaced_token"
    assert set(NEXT_TOKEN) <= set(ROWS["xlnet"].objectives)
    for name in OWN_PAIRS:
        assert ROWS[name].objectives[0] == "sentence_order"
