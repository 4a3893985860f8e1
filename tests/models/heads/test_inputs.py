"""What heads are given: documents in one row, separators, and what cannot be read."""

from __future__ import annotations

import re

import pytest
import torch

from lsp.core.errors import UserError
from lsp.models.heads.labels import Labels
from lsp.models.heads.registry import HEADS, build_head
from lsp.models.longformer_config import LongformerConfig
from lsp.models.reformer_config import ReformerConfig
from tests.models.heads.published import LENGTH, SEPARATOR, SHAPES, inputs_for

torch.set_num_threads(1)
ASKED = {"output_attentions": True, "output_hidden_states": True}


def longformer(task: str, **values: object):
    torch.manual_seed(0)
    return build_head(LongformerConfig.from_dict(SHAPES["longformer"] | values), task).eval()


def test_documents_of_a_row_answer_as_if_alone():
    model = longformer("token_classification", global_tokens=1)
    ids = inputs_for("longformer", "token_classification")["input_ids"][:1]
    segments = torch.tensor([[1] * 12 + [2] * 20])
    packed = model(ids, segment_ids=segments).logits
    for part in (slice(0, 12), slice(12, 32)):
        torch.testing.assert_close(
            packed[:, part], model(ids[:, part]).logits, rtol=1e-4, atol=1e-5
        )


def test_documents_do_not_predict_each_other():
    torch.manual_seed(0)
    local = {"attn_layers": ["local"], "is_decoder": True}
    model = build_head(ReformerConfig.from_dict(SHAPES["reformer"] | local), "causal_lm").eval()
    ids = inputs_for("reformer", "causal_lm")["input_ids"][:1]
    segments = torch.tensor([[1] * 12 + [2] * 20])
    packed = model(ids, segment_ids=segments, labels=ids).loss
    first = ids.clone()
    first[0, 12] = -100
    assert torch.equal(packed, model(ids, segment_ids=segments, labels=first).loss)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("sequence_classification", [0]),
        ("question_answering", [0, 1, 2]),
        ("multiple_choice", list(range(5, 32))),
        ("token_classification", None),
        ("masked_lm", None),
    ],
)
def test_global_tokens_of_a_task(task: str, expected: list[int] | None):
    model = longformer(task)
    ids = torch.arange(LENGTH)[None] % 20 + SEPARATOR + 1
    ids[0, [3, 4, 30]] = SEPARATOR
    ids = ids[None] if task == "multiple_choice" else ids
    out = model(ids, **ASKED)
    if expected is None:
        assert out.global_attentions is None
        return
    assert out.global_attentions[0].shape == (1, 2, LENGTH, len(expected))
    silent = [q for q in range(LENGTH) if not out.attentions[0][0, :, q].any()]
    assert silent == expected


@pytest.mark.parametrize("separators", [0, 2, 4])
def test_a_pair_needs_three_separators_in_every_row(separators: int):
    model = longformer("question_answering")
    ids = inputs_for("longformer", "question_answering")["input_ids"]
    ids[0][ids[0] == SEPARATOR] = 9
    ids[0, torch.arange(separators) + 3] = SEPARATOR
    with pytest.raises(UserError, match=re.escape(f"[{separators}, 3] separators")):
        model(ids)
    model(ids, global_attention_mask=torch.zeros_like(ids))


def test_one_way_to_say_what_is_padding():
    model = longformer("token_classification")
    ids = inputs_for("longformer", "token_classification")["input_ids"]
    ones = torch.ones_like(ids)
    with pytest.raises(UserError, match="give one of them"):
        model(ids, attention_mask=ones, segment_ids=ones)
    with pytest.raises(UserError, match="sequence_classification answers for a row"):
        longformer("sequence_classification")(ids, segment_ids=ones)


def test_gaps_and_global_tokens_do_not_go_together():
    gaps = {"attention_dilation": [1, 2]}
    ids = inputs_for("longformer", "masked_lm")["input_ids"]
    assert longformer("masked_lm", **gaps)(ids, **ASKED).attentions[1].shape[-1] == 9
    with pytest.raises(UserError, match="sequence_classification has"):
        longformer("sequence_classification", **gaps)(ids)


def test_a_causal_longformer_has_no_heads():
    with pytest.raises(UserError, match="a causal Longformer cannot have"):
        longformer("token_classification", is_decoder=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_labels": 0}, "num_labels=0 has to be a whole number, 1 or more"),
        ({"num_labels": "3"}, "num_labels='3' has to be a whole number"),
        ({"problem_type": "single"}, "problem_type=single is not known"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "has to name the labels 0 to 2"),
    ],
)
def test_labels_that_cannot_work(values: dict, message: str):
    with pytest.raises(UserError, match=message):
        Labels(**values)


def test_several_labels_may_be_whole_numbers():
    several, scores = Labels(3, "multi_label_classification"), torch.randn(4, 3)
    chosen = torch.randint(0, 2, (4, 3))
    assert torch.equal(several.loss(scores, chosen), several.loss(scores, chosen.float()))


def test_question_answering_has_two_scores():
    config = ReformerConfig.from_dict(SHAPES["reformer"])
    with pytest.raises(UserError, match="leave it out"):
        build_head(config, "question_answering", labels=Labels(3))


@pytest.mark.parametrize("autocast", [False, True], ids=["float64", "bf16 autocast"])
@pytest.mark.parametrize(
    "task", [task for architecture, task in HEADS if architecture == "longformer"]
)
def test_other_number_formats(task: str, autocast: bool):
    model = longformer(task).train()
    inputs = inputs_for("longformer", task, padded=True)
    if not autocast:
        model.double()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = model(**inputs, **ASKED)
        scores = out.start_logits if out.logits is None else out.logits
        scores.float().square().sum().backward()
    for values in (scores, *out.attentions, *out.hidden_states):
        assert values.isfinite().all()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)
