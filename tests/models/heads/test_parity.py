"""Every head beside the published one: same weights, same answers, losses and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lsp.core.errors import UserError
from lsp.models.heads.models import HeadedModel
from lsp.models.memory import MemoryConfig
from tests.models.heads.published import (
    IDS,
    LABELS,
    LENGTH,
    PUBLISHED,
    inputs_for,
    labels_for,
    ours_of,
    published,
)

SCORES = ("logits", "start_logits", "end_logits")


def assert_same_scores(ours: Any, theirs: Any) -> None:
    for name in SCORES:
        if getattr(theirs, name, None) is not None:
            torch.testing.assert_close(
                getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5, msg=name
            )


def assert_same_gradients(ours: HeadedModel, theirs: torch.nn.Module) -> None:
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    if "lm_head.bias" in expected:  # tied in the Longformer, unused in the Reformer
        expected["lm_head.decoder.bias"] = expected.pop("lm_head.bias")
    largest = max(float(grad.norm()) for grad in expected.values() if grad is not None)
    for name, parameter in ours.named_parameters():
        name = name.removeprefix("backbone.").replace("pooler.", "longformer.pooler.")
        if expected[name] is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        assert parameter.grad is not None, name
        difference = float((parameter.grad - expected[name]).norm())
        # The gradient of a key's bias is nothing but rounding: a softmax does not see it, as it
        # does not see that of a bias of all choices.
        rounding = 1e-6 * largest + 1e-7
        assert difference <= 1e-4 * float(expected[name].norm()) + rounding, name


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("architecture", "task"), PUBLISHED, ids=IDS)
def test_values_and_gradients(architecture: str, task: str, padded: bool):
    theirs = published(architecture, task)
    ours = ours_of(theirs, task)
    inputs = inputs_for(architecture, task, padded=padded)
    labels = labels_for(task, inputs["input_ids"])
    expected = theirs(**inputs, **labels)
    out = ours(**inputs, **labels)
    expected.loss.backward()
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-5, atol=0)
    assert_same_scores(out, expected)
    assert_same_gradients(ours, theirs)


MEMORIES = {
    "stored": MemoryConfig("stored"),
    "recomputed": MemoryConfig("recomputed"),
    "tiled": MemoryConfig(head_tiles=5, feed_forward_tiles=3, tile_megabytes=0.002),
}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(("architecture", "task"), PUBLISHED, ids=IDS)
def test_every_way_to_execute(architecture: str, task: str, memory: str):
    theirs = published(architecture, task)
    ours = ours_of(theirs, task, MEMORIES[memory])
    inputs = inputs_for(architecture, task)
    labels = labels_for(task, inputs["input_ids"])
    theirs(**inputs, **labels).loss.backward()
    lean = {"output_logits": False} if task.endswith("_lm") else {}
    out = ours(**inputs, **labels, **lean)
    assert lean == {} or out.logits is None
    out.loss.backward()
    assert_same_gradients(ours, theirs)


CLASSIFIERS = [
    architecture for architecture, task in PUBLISHED if task == "sequence_classification"
]
LABEL_KINDS = {
    "regression of one": (1, torch.tensor([0.3, -1.2]), None, "regression"),
    "regression of three": (3, torch.arange(6.0).view(2, 3), "regression", "regression"),
    "single": (3, torch.tensor([2, 0]), None, "single_label_classification"),
    "single with one ignored": (3, torch.tensor([2, -100]), None, "single_label_classification"),
    "several": (3, torch.tensor([[1.0, 0, 1], [0, 0, 1]]), None, "multi_label_classification"),
    "several by name": (
        2,
        torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "multi_label_classification",
        "multi_label_classification",
    ),
}


@pytest.mark.parametrize("kind", LABEL_KINDS)
@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_label_kinds(architecture: str, kind: str):
    count, labels, given, settled = LABEL_KINDS[kind]
    theirs = published(
        architecture, "sequence_classification", num_labels=count, problem_type=given
    )
    ours = ours_of(theirs, "sequence_classification")
    inputs = inputs_for(architecture, "sequence_classification")
    out, expected = ours(**inputs, labels=labels), theirs(**inputs, labels=labels)
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-5, atol=0)
    assert ours.labels.problem_type == settled == theirs.config.problem_type


@pytest.mark.parametrize(("architecture", "task"), PUBLISHED, ids=IDS)
def test_without_labels_there_is_no_loss(architecture: str, task: str):
    theirs = published(architecture, task).eval()
    ours = ours_of(theirs, task).eval()
    inputs = inputs_for(architecture, task, length=27)  # no whole number of chunks or windows
    with torch.no_grad():
        out, expected = ours(**inputs), theirs(**inputs)
    assert out.loss is None
    assert_same_scores(out, expected)


@pytest.mark.parametrize("task", [task for kind, task in PUBLISHED if kind == "longformer"])
def test_global_tokens_anywhere(task: str):
    theirs = published("longformer", task)
    ours = ours_of(theirs, task)
    inputs = inputs_for("longformer", task, padded=True)
    torch.manual_seed(3)
    seen = (torch.rand(inputs["input_ids"].shape) < 0.2).long()
    labels = labels_for(task, inputs["input_ids"])
    types = (torch.rand(seen.shape) < 0.5).long()
    given = inputs | labels | {"global_attention_mask": seen, "token_type_ids": types}
    out, expected = ours(**given), theirs(**given)
    out.loss.backward()
    expected.loss.backward()
    assert_same_scores(out, expected)
    assert_same_gradients(ours, theirs)


def test_reformer_hashes_as_often_as_told():
    theirs = published("reformer", "sequence_classification")
    ours = ours_of(theirs, "sequence_classification")
    inputs = inputs_for("reformer", "sequence_classification")
    out, expected = ours(**inputs, num_hashes=4), theirs(**inputs, num_hashes=4)
    assert_same_scores(out, expected)
    assert out.logits.shape == (2, LABELS)


def vectors_for(architecture: str, task: str, length: int) -> dict[str, torch.Tensor]:
    ids = inputs_for(architecture, task, length=length)["input_ids"]
    torch.manual_seed(4)
    inputs = {"inputs_embeds": torch.randn(*ids.shape, 16)}
    if architecture == "longformer":  # whose global tokens follow from the ids
        inputs["global_attention_mask"] = (torch.rand(ids.shape) < 0.2).long()
    return inputs


@pytest.mark.parametrize(("architecture", "task"), PUBLISHED, ids=IDS)
def test_vectors_in_place_of_tokens(architecture: str, task: str):
    theirs = published(architecture, task)
    ours = ours_of(theirs, task)
    labels = labels_for(task, inputs_for(architecture, task)["input_ids"])
    grads = []
    for model in (theirs, ours):
        inputs = vectors_for(architecture, task, LENGTH)
        inputs["inputs_embeds"].requires_grad_()
        out = model(**inputs, **labels)
        out.loss.backward()
        grads.append((out.loss.detach(), inputs["inputs_embeds"].grad))
    for want, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert_same_gradients(ours, theirs)
    with torch.no_grad():  # of a length that is no whole number of chunks
        inputs = vectors_for(architecture, task, 27)
        assert_same_scores(ours.eval()(**inputs), theirs.eval()(**inputs))
    with pytest.raises(UserError, match="give one of them"):
        ours()
