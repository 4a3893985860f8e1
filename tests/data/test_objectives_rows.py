"""What all objectives have in common."""

import dataclasses

import numpy as np
import pytest

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import UserError
from lsp.core.objectives import DECODER, OBJECTIVES
from lsp.core.seeding import stream
from lsp.data import objectives
from lsp.data.config import READS, ObjectiveConfig
from lsp.data.objectives.sample import Row, Vocabulary
from lsp.data.objectives.special import special_roles, with_decoder_start
from tests.data.rows import EOS, EVERY_ROLE, STOP, ListRows, packed

UNITS = [(name, unit) for name in READS for unit in ("token", "whole_word", "span")]
CONFIGS = [
    pytest.param(ObjectiveConfig(name, unit=unit), id=name if unit == "token" else f"{name}-{unit}")
    for name, unit in UNITS
    if unit == "token" or "unit" in READS[name]
]


def tensors(sample):
    parts = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    return {**{name: part for name, part in parts.items() if name != "extra"}, **sample.extra}


def rows_of(length, count=30):
    rows = ListRows(count, length)
    read = [tuple(part.astype(np.int64) for part in rows.row(i)) for i in range(count)]
    return [Row(*own, another=lambda g: read[int(g.integers(count))]) for own in read]


def test_every_name_has_its_function_and_its_keys():
    assert set(objectives.OBJECTIVES) == set(OBJECTIVES) == set(READS)


@pytest.mark.parametrize("config", CONFIGS)
def test_shapes_depend_on_the_configuration_alone(config):
    make = objectives.get(config, EVERY_ROLE)
    for length in (5, 64):
        shapes = set()
        for number, row in enumerate(rows_of(length)):
            found = tensors(make(row, stream(number), config, EVERY_ROLE))
            assert all(part.dtype == np.int64 for part in found.values())
            shapes.add(tuple((name, part.shape) for name, part in sorted(found.items())))
            assert found["input_ids"].shape == found["segment_ids"].shape == (length,)
            assert found["input_ids"].min() >= 0
            assert found["input_ids"].max() < EVERY_ROLE.size
        assert len(shapes) == 1
    decoder = config.decoder_tokens(64) if config.name in DECODER else 64
    assert found["labels"].shape == (decoder,)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_generator_alone_decides(config):
    make = objectives.get(config, EVERY_ROLE)
    row = rows_of(256)[0]
    before = row.input_ids.copy(), row.segment_ids.copy()

    def of(seed):
        return tensors(make(row, stream(seed), config, EVERY_ROLE))

    first, again = of(1), of(1)
    assert all((first[name] == again[name]).all() for name in first)
    assert (row.input_ids == before[0]).all()
    assert (row.segment_ids == before[1]).all()
    if config.name not in ("causal", "gap_sentences", "translation", "recurring_span"):
        assert any((first[name] != of(2)[name]).any() for name in first)


@pytest.mark.parametrize("config", CONFIGS)
def test_documents_stay_by_themselves(config):
    if "random_probability" in READS[config.name]:
        config = dataclasses.replace(config, random_probability=0.0)
    make = objectives.get(config, EVERY_ROLE)
    own = [np.arange(5, 55), np.arange(55, 105), np.arange(105, 155)]
    documents = [[*part[:20], STOP, *part[:20], EOS] for part in own]
    for seed in range(20):
        row = packed(*documents, length=144, elsewhere=documents[2])
        row = Row(row.input_ids, row.segment_ids, lambda _: (np.array(own[2]), np.ones(50, int)))
        found = tensors(make(row, stream(seed), config, EVERY_ROLE))
        segments = found["segment_ids"]
        of_labels = found.get("decoder_segment_ids", segments)
        of_decoder = {"decoder_input_ids": of_labels} if config.name in DECODER else {}
        by_name = {"input_ids": segments, "labels": of_labels, **of_decoder}
        if config.name == "recurring_span":
            del by_name["labels"]  # positions
        for name, numbers in by_name.items():
            for number in (1, 2):
                tokens = found[name][numbers == number]
                text = tokens[(tokens > STOP) & (tokens < 260)]
                elsewhere = config.name == "next_sentence" and found["pair_labels"][number - 1] == 1
                mine = np.append(own[number - 1], own[2] if elsewhere else [])
                assert np.isin(text, mine).all()
        assert (found["labels"][of_labels == 0] == IGNORE_INDEX).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_padding_predicts_nothing(config):
    row = packed([], length=64, elsewhere=[10, 11, 12])
    found = tensors(objectives.get(config, EVERY_ROLE)(row, stream(0), config, EVERY_ROLE))
    assert (found["labels"] == IGNORE_INDEX).all()
    assert not found["segment_ids"].any()


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if special_roles(ObjectiveConfig(name), 64)]
)
def test_a_vocabulary_that_lacks_tokens_is_refused(name):
    config = ObjectiveConfig(name)
    bare = Vocabulary(260, 3, frozenset(range(4)), {"pad": 0, "eos": 1}, EVERY_ROLE.read_marks)
    with pytest.raises(UserError, match=rf"objective={name} needs a tokenizer with special tokens"):
        objectives.get(config, bare)


def test_special_roles():
    assert special_roles(ObjectiveConfig("masked"), 64) == ()
    assert special_roles(ObjectiveConfig("denoising"), 64) == ()
    assert special_roles(ObjectiveConfig("denoising", decoder_start="bos"), 64) == ("bos",)
    assert special_roles(ObjectiveConfig("next_sentence"), 64) == ("cls", "sep")
    assert len(special_roles(ObjectiveConfig("span_corruption"), 64)) == 100
    ids = {"pad": 0, "eos": 1}
    assert with_decoder_start(ObjectiveConfig("causal"), ids) == ids
    assert with_decoder_start(ObjectiveConfig("denoising"), ids)["decoder_start"] == 1
    assert with_decoder_start(ObjectiveConfig("span_corruption"), ids)["decoder_start"] == 0
