"""Our NEZHA beside the published one, which `transformers` had up to 4.37.2, in what it gave.

The fixture has a config, weights, a batch and the outputs of `NezhaForPreTraining`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from lsp.models.memory import MemoryConfig
from lsp.models.nezha import Nezha
from lsp.models.nezha_config import NezhaConfig
from lsp.models.nezha_weights import BIAS, SECOND_BIAS, from_published, to_published

torch.set_num_threads(1)

FIXTURE = Path(__file__).parents[1] / "fixtures" / "nezha"
TENSORS = load_file(FIXTURE.with_suffix(".safetensors"))
MEMORIES = {
    "stored": MemoryConfig("stored"),
    "recomputed": MemoryConfig("recomputed"),
    "tiled": MemoryConfig("recomputed", head_tiles=5, feed_forward_tiles=3, tile_megabytes=0.002),
}


def under(prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): x for n, x in TENSORS.items() if n.startswith(prefix)}


def config() -> NezhaConfig:
    content = json.loads(FIXTURE.with_suffix(".json").read_text())
    values = {key[4:]: value for key, value in content.items() if key.startswith("cfg/")}
    return NezhaConfig.from_dict(values | {"architectures": [content["cls"]]})


def model(memory: str = "stored") -> Nezha:
    made = Nezha(config(), MEMORIES[memory])
    made.load_state_dict(from_published(under("state/"), made.config))
    return made


def batch() -> dict[str, torch.Tensor]:
    given = under("batch/")
    ids = given["input_ids"]
    return {
        "input_ids": ids,
        "labels": given["labels"],
        "token_type_ids": torch.zeros_like(ids),
        "pair_positions": torch.zeros(len(ids), 1, dtype=torch.int64),
        "pair_labels": given["next_sentence_label"][:, None],
    }


@pytest.mark.parametrize("memory", MEMORIES)
def test_scores_and_losses_are_the_published(memory: str):
    ours, rows, published = model(memory), batch(), under("out/")
    hidden = ours.eval().hidden_states(rows["input_ids"], token_type_ids=rows["token_type_ids"])
    scores, pairs = ours.lm_head(hidden), ours.pair_scores(hidden, rows["pair_positions"])[:, 0]
    torch.testing.assert_close(scores, published["prediction_logits"], rtol=0, atol=1e-6)
    torch.testing.assert_close(pairs, published["seq_relationship_logits"], rtol=0, atol=1e-6)
    labels = rows["labels"]
    tokens = F.cross_entropy(scores.flatten(0, 1), labels.flatten())
    of_pairs = F.cross_entropy(pairs, rows["pair_labels"][:, 0], reduction="none")
    torch.testing.assert_close(tokens + of_pairs.mean(), published["loss"], rtol=1e-6, atol=0)
    total, count = ours(**rows)
    predicted = (labels != -100).sum(1)
    assert count == predicted.sum()
    # The pair of a row counts as often as the row has predicted tokens.
    expected = tokens * count + (of_pairs * predicted).sum()
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("memory", MEMORIES)
def test_where_rows_predict_equally_much_the_loss_is_the_published(memory: str):
    """A row by itself: the published sum of two means."""
    ours, rows = model(memory), {name: x[:1] for name, x in batch().items()}
    total, count = ours(**rows)
    scores, pairs = (under("out/")[f"{n}_logits"][:1] for n in ("prediction", "seq_relationship"))
    expected = F.cross_entropy(scores[0], rows["labels"][0])
    expected = expected + F.cross_entropy(pairs, rows["pair_labels"][:, 0])
    torch.testing.assert_close(total / count, expected, rtol=1e-6, atol=0)


CHECKED = (
    "nezha.embeddings.word_embeddings.weight",
    "nezha.embeddings.token_type_embeddings.weight",
    "nezha.encoder.layer.0.attention.self.query.weight",
    "nezha.encoder.layer.0.attention.self.key.weight",
    "nezha.encoder.layer.1.attention.self.value.bias",
    "nezha.encoder.layer.1.output.dense.weight",
    "nezha.pooler.dense.weight",
    "cls.predictions.transform.dense.weight",
    "cls.seq_relationship.bias",
)


def exact_loss(ours: Nezha) -> float:
    """What `forward` adds up, in float64 throughout."""
    rows = batch()
    labels, pair_labels = rows["labels"], rows["pair_labels"][:, 0]
    hidden = ours.hidden_states(rows["input_ids"], token_type_ids=rows["token_type_ids"])
    pairs = ours.pair_scores(hidden, rows["pair_positions"])[:, 0]
    scores = ours.lm_head(hidden).flatten(0, 1)
    of_tokens = F.cross_entropy(scores, labels.flatten(), reduction="sum")
    of_pairs = F.cross_entropy(pairs, pair_labels, reduction="none") * (labels != -100).sum(1)
    return float(of_tokens + of_pairs.sum())


@pytest.mark.parametrize("memory", ["recomputed", "tiled"])
@torch.no_grad()
def test_gradients_are_finite_differences(memory: str):
    ours, step = model(memory).double(), 1e-4
    with torch.enable_grad():
        ours(**batch())[0].backward()
    for name in CHECKED:
        parameter = ours.get_parameter(name)
        assert parameter.grad is not None, name
        entry, flat = int(parameter.grad.abs().argmax()), parameter.view(-1)
        before = float(flat[entry])
        flat[entry] = before + step
        above = exact_loss(ours)
        flat[entry] = before - step
        slope = (above - exact_loss(ours)) / (2 * step)
        flat[entry] = before
        assert slope == pytest.approx(float(parameter.grad.view(-1)[entry]), rel=1e-5), name


def test_weights_come_back_bit_for_bit():
    published = under("state/")
    back = to_published(model().state_dict())
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], weight) for name, weight in published.items())


def test_tables_of_old_files_and_second_names_are_no_weights():
    weights = under("state/")
    weights["nezha.embeddings.token_type_ids"] = torch.zeros(1, 192)
    table = "nezha.encoder.layer.0.attention.self.relative_positions_encoding.positions_encoding"
    weights[table] = torch.ones(3, 3, 8)
    for name in (BIAS, "cls.predictions.decoder.weight"):  # tied, so often not saved
        del weights[name]
    assert SECOND_BIAS in weights
    Nezha(config()).load_state_dict(from_published(weights, config()))


def test_a_model_of_tokens_alone_leaves_out_what_tells_pairs():
    alone = NezhaConfig.from_dict(config().to_dict() | {"sentence_pairs": False})
    ours = Nezha(alone).eval()
    ours.load_state_dict(from_published(under("state/"), alone))
    logits = ours.logits(batch()["input_ids"])
    torch.testing.assert_close(logits, under("out/")["prediction_logits"], rtol=0, atol=1e-6)
