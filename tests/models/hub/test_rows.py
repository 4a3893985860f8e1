"""Every row of the table: builds, learns, sees what it should, comes back, and says what cannot be.

What a claim means in detail is tested beside the code; here each row shows that it keeps it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lsp.core.errors import UserError
from lsp.core.objectives import DECODER, NEXT_TOKEN
from lsp.models.hub import keys
from lsp.models.hub.adapter import HubModel
from lsp.models.hub.build import build
from lsp.models.hub.config import HubConfig, resolve
from lsp.models.hub.table import ROWS
from lsp.models.memory import MemoryConfig
from tests.models.hub.tiny import (
    LENGTH,
    SPECIAL_IDS,
    VOCABULARY,
    batch_for,
    built,
    settled,
    tiny,
)

torch.set_num_threads(1)

PLACE = LENGTH // 2
"""Where a token is exchanged."""
SAME = ("fill_in_the_middle", *DECODER)
"""Objectives for which a model is the same as for another of its row."""


def objectives_of(model_type: str) -> list[str]:
    first, *others = ROWS[model_type].objectives
    return [first, *(other for other in others if other not in SAME)]


CASES = [(name, objective) for name in ROWS for objective in objectives_of(name)]
IDS = [f"{name}-{objective}" for name, objective in CASES]
Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize(("model_type", "objective"), CASES, ids=IDS)
def test_row(model_type: str, objective: str):
    model, batch = built(model_type, objective), batch_for(objective)
    assert_tokens_mix(model, batch)
    assert_learns(model, batch)
    assert_comes_back(model, batch)


def outputs(model: HubModel, batch: Tensors) -> torch.Tensor:
    """What is answered about each position, in evaluation: (B, L, …)."""
    model.eval()
    given = {name: x for name, x in batch.items() if name in ("input_ids", "segment_ids")}
    decoder = {name: x for name, x in batch.items() if name.startswith("decoder_")}
    with torch.no_grad():
        if model.config.objective == "recurring_span":
            return model.hidden_states(**given)
        return model.logits(**given, **decoder)


def assert_tokens_mix(model: HubModel, batch: Tensors) -> None:
    """A token is noticed wherever it may be, and nowhere else."""
    before = outputs(model, batch)
    for name in ("input_ids", "decoder_input_ids"):
        if name not in batch:
            continue
        ids_BL = batch[name].clone()
        ids_BL[:, PLACE] = len(SPECIAL_IDS) + (ids_BL[:, PLACE] + 5) % 7
        assert not torch.equal(ids_BL, batch[name])
        changed = outputs(model, batch | {name: ids_BL}) != before
        changed_BL = changed.reshape(*changed.shape[:2], -1).any(-1)
        assert changed_BL[:, PLACE + 1 :].any(1).all(), "nothing after it notices"
        if name == "decoder_input_ids" or model.config.objective in NEXT_TOKEN:
            assert not changed_BL[:, :PLACE].any(), "what comes before it notices"
        else:
            assert changed_BL[:, :PLACE].any(1).all(), "nothing before it notices"


def assert_learns(model: HubModel, batch: Tensors) -> None:
    """Three steps on one batch lower its loss; every weight that is trained has a gradient."""
    model.train()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([p for _, p in trained], lr=1e-2)
    losses = []
    for _ in range(4):
        model.begin_micro_batch(1)
        loss_sum, count = model(**batch)
        losses.append(float(loss_sum.detach() / count))
        (loss_sum / count).backward()
        if len(losses) == 1:
            assert not [name for name, p in trained if p.grad is None]
            assert all(p.grad is not None and p.grad.isfinite().all() for _, p in trained)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < losses[0]


def assert_comes_back(model: HubModel, batch: Tensors) -> None:
    """Another model of the same weights answers the same."""
    again = build(model.config)
    again.load_state_dict({name: x.clone() for name, x in model.state_dict().items()})
    assert torch.equal(outputs(again, batch), outputs(model, batch))


@pytest.mark.parametrize("model_type", ROWS)
def test_leaner_is_the_same(model_type: str):
    objective = ROWS[model_type].objectives[0]
    batch = batch_for(objective)
    lean = MemoryConfig(residual="recomputed", head_tiles=3, feed_forward_tiles=3)
    plain = MemoryConfig(residual="stored", head_tiles=1, feed_forward_tiles=1)
    found = []
    for memory in (lean, plain):
        model = built(model_type, objective, memory, **without_dropout(model_type))
        state = torch.get_rng_state()
        model.train().begin_micro_batch(3)
        loss_sum, _ = model(**batch)
        loss_sum.backward()
        assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": loss_sum.detach(), **gradients})
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)


def without_dropout(model_type: str) -> dict[str, float]:
    """Keys that switch it off: a tile has dropout of its own."""
    default = keys.default_config(model_type)
    drops = [key for key in keys.known_keys(model_type) if "drop" in key]
    return {key: 0.0 for key in drops if type(getattr(default, key)) is float}


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("model_type", ROWS)
def test_what_cannot_be_is_told_in_a_line(model_type: str):
    row, key = ROWS[model_type], next(iter(tiny(model_type)))
    objective = row.objectives[0]
    message = refused(lambda: settled(model_type, objective, **{f"{key}_x": 1}))
    assert f"model_init_config.{key}_x=1 is not known" in message
    assert key in message.partition("did you mean")[2]

    wrong = "causal" if "causal" not in row.objectives else "span_corruption"
    assert row.objectives[-1] in refused(lambda: settled(model_type, wrong))

    number = next(key for key, value in tiny(model_type).items() if type(value) is int)
    message = refused(lambda: settled(model_type, objective, **{number: "many"}))
    assert f"model_init_config.{number}='many'" in message

    if row.positions and row.table:
        message = refused(lambda: settled(model_type, objective, **{row.positions: LENGTH - 1}))
        assert row.positions in message
        assert f"sequence_length={LENGTH}" in message


@pytest.mark.parametrize(
    ("model_type", "length", "message"),
    [
        ("big_bird", 14, "up to 14 its blocks see everything.*use 16 or more"),
        ("big_bird", 33, "not a multiple of 2.*use 32 or 34"),
        ("bigbird_pegasus", 12, "too short"),
        ("mra", 48, "use 32 or 64"),
        ("nystromformer", 36, "use 32 or 40"),
    ],
)
def test_lengths_that_blocks_do_not_fit(model_type: str, length: int, message: str):
    config = HubConfig(model_type=model_type, model_init_config=tiny(model_type))
    with pytest.raises(UserError, match=message):
        resolve(
            config,
            vocab_size=VOCABULARY,
            sequence_length=length,
            objective=ROWS[model_type].objectives[0],
            special_ids=SPECIAL_IDS,
        )
