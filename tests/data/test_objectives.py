"""Labels of the objectives."""

import numpy as np
import pytest

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import UserError
from lsp.core.seeding import stream
from lsp.data import objectives
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.causal import causal
from lsp.data.objectives.masked import masked
from lsp.data.objectives.sample import Vocabulary
from tests.data.rows import VOCABULARY, ListRows, row_of


def test_causal_predicts_the_next_token_of_the_same_document():
    ids = np.array([10, 11, 12, 20, 21, 0, 0])
    segments = np.array([1, 1, 1, 2, 2, 0, 0])
    sample = causal(row_of(ids, segments))
    inputs, labels = sample.input_ids, sample.labels
    no = IGNORE_INDEX
    assert inputs.tolist() == ids.tolist()
    assert labels.tolist() == [11, 12, no, 21, no, no, no]


def test_causal_never_crosses_documents_or_padding():
    rows = ListRows(50, 40)
    for number in range(len(rows)):
        ids, segments = rows.row(number)
        labels = causal(row_of(ids, segments)).labels
        for t in range(40):
            follows = t + 1 < 40 and segments[t] != 0 and segments[t + 1] == segments[t]
            assert labels[t] == (ids[t + 1] if follows else IGNORE_INDEX)


def test_masked_shares_are_those_of_bert():
    length, config = 200_000, ObjectiveConfig(name="masked")
    ids = np.random.default_rng(0).integers(4, VOCABULARY.size, length)
    segments = np.ones(length, np.int64)
    sample = masked(row_of(ids, segments), stream(1), config, VOCABULARY)
    inputs, labels = sample.input_ids, sample.labels
    chosen = labels != IGNORE_INDEX
    assert abs(chosen.mean() - 0.15) < 0.005
    assert (labels[chosen] == ids[chosen]).all()
    assert (inputs[~chosen] == ids[~chosen]).all()
    to_mask = (inputs == VOCABULARY.mask_id)[chosen].mean()
    kept = (inputs == ids)[chosen].mean()
    assert abs(to_mask - 0.8) < 0.01
    assert abs(kept - 0.1) < 0.01  # a random token is the same one time in 260


def test_masked_never_predicts_padding_or_special_tokens():
    rows, config = ListRows(40, 64), ObjectiveConfig(name="masked", mask_probability=0.9)
    for number in range(len(rows)):
        ids, segments = rows.row(number)
        sample = masked(row_of(ids, segments), stream(number), config, VOCABULARY)
        inputs, labels = sample.input_ids, sample.labels
        untouched = (segments == 0) | np.isin(ids, list(VOCABULARY.special_ids))
        assert (labels[untouched] == IGNORE_INDEX).all()
        assert (inputs[untouched] == ids[untouched]).all()
        assert (labels != IGNORE_INDEX).sum() > 0


def test_masked_needs_a_mask_token():
    with pytest.raises(UserError, match="tokenizer=bytes"):
        objectives.get(ObjectiveConfig("masked"), Vocabulary(256, None, frozenset()))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"name": "cauzal"}, "objective.name=cauzal"),
        ({"name": "masked", "mask_probability": 0.0}, "objective.mask_probability=0.0"),
        ({"name": "masked", "mask_probability": 1.0}, "objective.mask_probability=1.0"),
        ({"name": "masked", "random_probability": -0.1}, "objective.random_probability=-0.1"),
        (
            {"name": "masked", "replace_probability": 0.95, "random_probability": 0.1},
            "must add up to 1",
        ),
        ({"mask_probability": 0.2}, "is not read by objective=causal, but by masked"),
        ({"name": "masked", "max_span_length": 5}, "with objective.unit=span alone"),
        ({"name": "masked", "unit": "words"}, "objective.unit=words"),
        ({"name": "denoising", "decoder_start": "mask"}, "objective.decoder_start=mask"),
        ({"name": "span_corruption", "decoder_length": 0}, "objective.decoder_length=0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_config_refuses(values, key):
    with pytest.raises(UserError, match=key):
        ObjectiveConfig(**values)
