"""Heads of Transformer-XL beside those of the last `transformers` that had them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lsp.core.errors import UserError
from lsp.models.heads.labels import Labels
from lsp.models.heads.models import HeadedModel
from lsp.models.heads.registry import build_head
from lsp.models.heads.weights import from_published, published_names, to_published
from lsp.models.memory import MemoryConfig
from lsp.models.transformer_xl_config import TransformerXLConfig

torch.set_num_threads(1)
FILE = Path(__file__).parents[2] / "fixtures" / "transfo-xl-heads.safetensors"
TASKS = {"lm": "causal_lm", "classifier": "sequence_classification"}
ASKED = {"output_attentions": True, "output_hidden_states": True}


def fixture(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(FILE, "pt") as file:
        names = [key for key in file.keys() if key.startswith(name)]  # noqa: SIM118
        found = {key.split("/", 1)[1]: file.get_tensor(key) for key in names}
        return json.loads(file.metadata()["config"]), found


def under(found: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def ours(name: str, memory: MemoryConfig | None = None, **changes: Any) -> HeadedModel:
    described, found = fixture(name)
    labels = Labels.of(described)
    config = TransformerXLConfig.from_dict(described | changes)
    model = build_head(config, TASKS[name], labels=labels, memory=memory)
    state, fresh = from_published(under(found, "state/"), model)
    assert fresh == ()
    model.load_state_dict(state)
    return model.eval()


def close(got: torch.Tensor, want: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=name)


MEMORIES = {
    "stored": MemoryConfig("stored"),
    "recomputed": MemoryConfig("recomputed"),
    "tiled": MemoryConfig(head_tiles=3, feed_forward_tiles=2, tile_megabytes=0.002),
}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", TASKS)
def test_values_memories_and_gradients(name: str, memory: str):
    _, found = fixture(name)
    model = ours(name, MEMORIES[memory])
    before = model(found["first"])
    if name == "lm":
        close(before.prediction_scores, found["prediction_scores"], "scores")
        assert before.logits is before.prediction_scores
    out = model(found["input_ids"], mems=before.mems, labels=found["labels"], **ASKED)
    out.loss.backward()
    close(out.loss, found["loss"], "loss")
    if name == "lm":
        # The published ones are in the order of clusters, whatever their shape says.
        assert out.losses.shape == found["losses"].shape
        got, want = (x.flatten().sort().values for x in (out.losses, found["losses"]))
        close(got, want, "losses")
        scores = model(found["input_ids"], mems=before.mems).prediction_scores[:, :-1]
        next_BK = found["labels"][:, 1:]
        picked = -scores.gather(2, next_BK.clamp_min(0)[..., None])[..., 0]
        close(out.losses, picked.masked_fill(next_BK == -100, 0.0), "losses by position")
        assert out.prediction_scores is None
    else:
        close(out.logits, found["logits"], "logits")
    for field in ("mems", "hidden_states", "attentions"):
        expected = under(found, f"{field}/")
        assert len(getattr(out, field)) == len(expected)
        for number, got in enumerate(getattr(out, field)):
            close(got, expected[str(number)], field)
    names, grads = published_names(model), under(found, "grad/")
    largest = max(float(grad.norm()) for grad in grads.values())
    for own, parameter in model.named_parameters():
        expected = grads[names[own]]
        difference = float((parameter.grad - expected).norm())
        assert difference <= 1e-4 * float(expected.norm()) + 1e-6 * largest, own


def test_the_loss_alone_in_tiles():
    _, found = fixture("lm")
    model = ours("lm", MEMORIES["tiled"])
    mems = model(found["first"]).mems
    whole = model(found["input_ids"], mems=mems, labels=found["labels"])
    lean = model(found["input_ids"], mems=mems, labels=found["labels"], output_losses=False)
    assert lean.losses is None
    close(lean.loss, whole.loss, "loss")
    ignored = torch.full_like(found["first"], -100)
    assert not model(found["first"], labels=ignored).loss.any()


@pytest.mark.parametrize("name", TASKS)
def test_weights_go_back(name: str):
    _, found = fixture(name)
    back, expected = to_published(ours(name)), under(found, "state/")
    assert back.keys() == expected.keys()
    for key, weight in expected.items():
        if key.endswith("inv_freq"):
            close(back[key], weight, key)
        else:
            assert torch.equal(back[key], weight), key


def test_a_classifier_on_a_language_model():
    described, found = fixture("lm")
    config = TransformerXLConfig.from_dict(described)
    model = build_head(config, "sequence_classification")
    state, fresh = from_published(under(found, "state/"), model)
    assert fresh == ("score.weight",)
    model.load_state_dict(state)
    assert 0.15 < float(model.score.weight.detach().std()) < 0.45
    assert not any("crit" in key for key in state)


def test_where_a_row_ends():
    _, found = fixture("classifier")
    model, ids = ours("classifier"), found["input_ids"]
    by_mask = model(ids, attention_mask=(ids != 39).long()).logits
    close(by_mask, model(ids).logits, "rows that are padded behind")
    before = torch.cat([ids.new_full((1, 3), 39), ids[:1]], dim=1)
    mask = torch.ones_like(before)
    mask[0, :3] = 0
    unpadded = ours("classifier", zero_memory=False)
    close(unpadded(before, attention_mask=mask).logits, unpadded(ids[:1]).logits, "padded before")
    alone = ours("classifier", pad_token_id=None)
    close(alone(ids[:1]).logits, model(ids[:1]).logits, "one row")
    with pytest.raises(UserError, match="give an attention_mask"):
        alone(ids)


def test_a_text_that_begins_is_preceded_by_nothing():
    """Memories that nobody has made yet are left out, so that nothing sees them later."""
    _, found = fixture("lm")
    model, ids = ours("lm", zero_memory=False), found["first"]
    head, tail = ids[:, :4], ids[:, 4:]
    out = model(head)
    assert [x.shape for x in out.mems] == [(4, 3, 16)] * 2
    close(
        model(tail, mems=out.mems).prediction_scores,
        model(ids).prediction_scores[:, 4:],
        "in two parts",
    )
    shown = model(tail, mems=out.mems, **ASKED)
    assert [x.shape for x in shown.attentions] == [(3, 2, 6, 10)] * 2


def test_mems_that_do_not_fit():
    model, (_, found) = ours("lm"), fixture("lm")
    segments = torch.ones_like(found["first"])
    with pytest.raises(UserError, match="n_layer=2"):
        model(found["first"], mems=[torch.zeros(6, 3, 16)])
    for rows, width in ((2, 16), (3, 12)):
        with pytest.raises(UserError, match=r"3 rows, d_model=16"):
            model(found["first"], mems=[torch.zeros(6, rows, width)] * 2)
    with pytest.raises(UserError, match="leave segment_ids out"):
        model(found["first"], mems=[torch.zeros(6, 3, 16)] * 2, segment_ids=segments)


def test_a_classifier_needs_an_embedding_as_wide_as_the_model():
    described, _ = fixture("classifier")
    config = TransformerXLConfig.from_dict(described | {"d_embed": 12})
    with pytest.raises(UserError, match="d_embed=12 and d_model=16"):
        build_head(config, "sequence_classification")


@pytest.mark.parametrize("name", TASKS)
def test_vectors_in_place_of_tokens(name: str):
    model, (_, found) = ours(name), fixture(name)
    ids = found["first"][:1]
    vectors = model.backbone.transformer.word_emb(ids)
    out, same = model(ids), model(inputs_embeds=vectors)
    assert torch.equal(same.logits, out.logits)
    for got, want in zip(same.mems, out.mems, strict=True):
        assert torch.equal(got, want)
