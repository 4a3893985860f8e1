"""A Longformer made of a RoBERTa beside that RoBERTa: the same model where windows cover rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from lsp.hub.importing import PublishedModel
from lsp.hub.lengthening import read_lengthened
from lsp.models.longformer import Longformer
from lsp.models.longformer_weights import BIAS, from_published
from lsp.models.roberta_conversion import POSITIONS as TABLE
from tests.hub.tiny_roberta import POSITIONS, VOCABULARY, tiny_roberta, write_legacy

torch.set_num_threads(1)

LONG = 100  # three times the short length, and a part of it
EVERYTHING = 2 * POSITIONS
VARIANTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "other padding": {"pad_token_id": 3, "eos_token_id": 5, "max_position_embeddings": 34},
    "two token types": {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "relu"},
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[transformers.RobertaForMaskedLM, PublishedModel]:
    folder = tmp_path_factory.mktemp("roberta")
    theirs = tiny_roberta(**VARIANTS[request.param])
    theirs.save_pretrained(folder)
    return theirs, read_lengthened(folder, LONG, EVERYTHING)


def ours_of(published: PublishedModel) -> Longformer:
    model = Longformer(published.config).eval()
    model.load_state_dict(published.weights)
    return model


def rows(length: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(6, VOCABULARY, (3, length))
    mask = torch.ones_like(ids)
    for row, kept in ((1, length - 1), (2, length // 2)):
        mask[row, kept:], ids[row, kept:] = 0, pad
    return ids, mask


@pytest.mark.parametrize("length", [2, 17, POSITIONS])
@pytest.mark.parametrize("with_global", [False, True], ids=["windows", "and global tokens"])
@torch.no_grad()
def test_logits_are_those_of_the_short_model(pair, length, with_global):
    theirs, published = pair
    ids, mask = rows(length, theirs.config.pad_token_id)
    seen = None
    if with_global:  # their projections are the same, so they see the same
        seen = torch.zeros_like(ids)
        seen[:, 0] = 1
    logits = ours_of(published).logits(ids, mask, None, seen)
    expected = theirs(ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-5, atol=1e-5)


def test_positions_are_repeated_after_the_rows_of_padding(pair):
    theirs, published = pair
    short = theirs.roberta.embeddings.position_embeddings.weight
    long, first = published.weights[TABLE], theirs.config.pad_token_id + 1
    assert len(long) == first + LONG == published.config.max_position_embeddings
    assert torch.equal(long[:first], short[:first])
    for position in range(LONG):
        assert torch.equal(long[first + position], short[first + position % POSITIONS])


def test_tokens_that_see_everything_begin_as_the_others(pair):
    weights = pair[1].weights
    names = [name for name in weights if "_global." in name]
    assert len(names) == 2 * 3 * 2  # layers, projections, weight and bias
    assert all(torch.equal(weights[n], weights[n.replace("_global", "")]) for n in names)


def test_everything_else_is_copied(pair):
    theirs, published = pair
    changed = {TABLE.replace("longformer", "roberta"), "lm_head.bias"}
    for name, weight in theirs.state_dict().items():
        if name not in changed:
            assert torch.equal(published.weights[name.replace("roberta.", "longformer.")], weight)


@torch.no_grad()
def test_each_stretch_of_a_long_row_is_read_as_a_short_row(pair):
    # A window has no way from one document to the next, so the stretches are rows of their own.
    theirs, published = pair
    ids, _ = rows(POSITIONS, theirs.config.pad_token_id)
    row, stretch = ids[:1].repeat(1, 3), torch.arange(1, 4).repeat_interleave(POSITIONS)[None]
    positions = torch.arange(3 * POSITIONS)[None]
    logits = ours_of(published).logits(row, stretch, positions)
    expected = theirs(ids[:1]).logits.repeat(1, 3, 1)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_published_longformer_reads_it_alike(pair):
    theirs, published = pair
    config = published.config.to_dict() | {"attention_window": published.config.windows}
    config = {k: v for k, v in config.items() if k not in ("global_tokens", "attention_dilation")}
    model = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**config)).eval()
    model.load_state_dict(published.weights | {"lm_head.bias": published.weights[BIAS]})
    ids, mask = rows(POSITIONS, theirs.config.pad_token_id)
    expected, real = theirs(ids, attention_mask=mask).logits, mask.bool()
    logits = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-5, atol=1e-5)
    assert from_published(model.state_dict(), published.config).keys() == published.weights.keys()


def test_a_pickle_of_2019_gives_the_same(tmp_path: Path):
    theirs = tiny_roberta()
    theirs.save_pretrained(tmp_path)
    expected = read_lengthened(tmp_path, LONG, 8).weights
    write_legacy(tmp_path, theirs)
    found = read_lengthened(tmp_path, LONG, 8).weights
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_half_precision_becomes_fp32(tmp_path: Path):
    tiny_roberta().to(torch.bfloat16).save_pretrained(tmp_path)
    weights = read_lengthened(tmp_path, LONG, 8).weights
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
