"""A generator that is trained along, and what it has the discriminator learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import UserError
from lsp.models.hub.adapter import HubModel
from lsp.models.hub.losses import replaced_token
from tests.models.hub.made import Batch, gradients, make, text
from tests.models.hub.tiny import LENGTH, SPECIAL_IDS

ROWS = ["electra", "deberta-v2"]


def masked(rows: int = 2, hidden: int = 6) -> Batch:
    """Rows of one document, with as many tokens hidden in each."""
    ids_BL = text(rows, LENGTH)
    labels_BL = torch.full_like(ids_BL, IGNORE_INDEX)
    labels_BL[:, 4 : 4 + hidden] = ids_BL[:, 4 : 4 + hidden]
    return {
        "input_ids": ids_BL.where(labels_BL == IGNORE_INDEX, SPECIAL_IDS["mask"]),
        "labels": labels_BL,
        "segment_ids": torch.ones_like(ids_BL),
    }


def filled_in(hub: HubModel, batch: Batch) -> torch.Tensor:
    """What the discriminator is given."""
    given: list[torch.Tensor] = []
    body: Any = hub.head.body  # type: ignore[attr-defined]
    hook = body.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["input_ids"]), with_kwargs=True
    )
    hub(**batch)
    hook.remove()
    (ids_BL,) = given
    return ids_BL


@pytest.mark.parametrize("model_type", ROWS)
def test_both_losses_and_their_gradients(model_type: str) -> None:
    hub, batch = make(model_type, "replaced_token"), masked()
    loss_sum, count = hub(**batch)
    ours = gradients(hub, loss_sum / count)
    ids_BL, labels_BL = filled_in(hub, batch), batch["labels"]

    guessed = hub.generator.model(input_ids=batch["input_ids"]).logits
    generator = F.cross_entropy(guessed.flatten(0, 1), labels_BL.flatten())
    scores_BL = hub.model(input_ids=ids_BL).logits.view(ids_BL.shape)
    replaced_BL = (labels_BL != IGNORE_INDEX) & (ids_BL != labels_BL)
    told = F.binary_cross_entropy_with_logits(scores_BL, replaced_BL.float())
    expected = generator + 50.0 * told
    assert count == 12
    assert replaced_BL.any()
    torch.testing.assert_close(loss_sum / count, expected, rtol=1e-5, atol=1e-5)
    theirs = gradients(hub, expected)
    assert (
        ours.keys()
        == theirs.keys()
        == {name for name, _ in hub.named_parameters()}
        - {name for name, p in hub.named_parameters() if not p.requires_grad}
    )
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ROWS)
def test_embeddings_are_shared_and_the_rest_is_not(model_type: str) -> None:
    hub = make(model_type, "replaced_token")
    ours, theirs = (m.base_model.embeddings for m in (hub.model, hub.generator.model))
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        if getattr(ours, name) is not None:
            assert getattr(ours, name).weight is getattr(theirs, name).weight
    assert hub.generator.model.get_output_embeddings().weight is ours.word_embeddings.weight
    assert ours.LayerNorm.weight is not theirs.LayerNorm.weight


def test_sizes_of_generators() -> None:
    electra = make("electra", "replaced_token").generator.model.config
    assert (electra.hidden_size, electra.num_hidden_layers) == (4, 2)
    deberta = make("deberta-v2", "replaced_token").generator.model.config
    assert (deberta.hidden_size, deberta.num_hidden_layers) == (16, 1)
    small = make(
        "electra",
        "replaced_token",
        generator={"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1},
    )
    assert small.generator.model.config.num_hidden_layers == 1
    assert torch.isfinite(small(**masked())[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden_sise": 8}, "architecture.generator.hidden_sise is no key of electra"),
        ({"embedding_size": 4}, "shares the embeddings of the model, which are 8 wide"),
        ({"hidden_size": 9, "num_attention_heads": 2}, "hidden_size=9 is not a multiple"),
    ],
)
def test_generators_that_cannot_be(keys: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("electra", "replaced_token", generator=keys)


def test_only_hidden_tokens_are_filled_in_and_by_the_generators_odds() -> None:
    hub, batch = make("electra", "replaced_token"), masked(rows=64)
    hub.generator.model.generator_lm_head.bias.data[10:12] = 20.0
    ids_BL, hidden_BL = filled_in(hub, batch), batch["labels"] != IGNORE_INDEX
    assert torch.equal(ids_BL[~hidden_BL], batch["input_ids"][~hidden_BL])
    values, counts = ids_BL[hidden_BL].unique(return_counts=True)
    assert values.tolist() == [10, 11]
    assert 0.35 < float(counts[0] / counts.sum()) < 0.65


def test_sampling_depends_on_step_and_row_alone() -> None:
    hub, batch = make("electra", "replaced_token"), masked(rows=4)
    for module in hub.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    hub.train()

    def filled(seed: int, rows: slice) -> torch.Tensor:
        hub.begin_micro_batch(seed, rows.start)
        return filled_in(hub, {name: x[rows] for name, x in batch.items()})

    whole = filled(1, slice(0, 4))
    assert torch.equal(whole[2:], filled(1, slice(2, 4)))
    assert not torch.equal(whole, filled(2, slice(0, 4)))
    assert not torch.equal(whole[:1], filled(1, slice(1, 2)))


def test_evaluation_is_the_same_however_rows_come_together() -> None:
    hub, batch = make("electra", "replaced_token"), masked(rows=3)
    whole = filled_in(hub, batch)
    assert torch.equal(whole[2:], filled_in(hub, {name: x[2:] for name, x in batch.items()}))
    assert replaced_token.DISCRIMINATOR_WEIGHT == 50.0


def test_the_exported_model_is_the_discriminator() -> None:
    hub = make("electra", "replaced_token")
    parts = {name.partition(".")[0] for name, _ in hub.named_parameters()}
    assert parts == {"model", "generator"}
    assert type(hub.model).__name__ == "ElectraForPreTraining"
