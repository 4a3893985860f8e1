"""What an encoder reads and a decoder predicts."""

import numpy as np
import pytest

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import UserError
from lsp.core.seeding import stream
from lsp.data import objectives
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.denoising import denoising, infill, permute
from lsp.data.objectives.future_ngram import future_ngram
from lsp.data.objectives.gap_sentences import gap_sentences, overlaps, principal
from lsp.data.objectives.sample import Vocabulary
from lsp.data.objectives.span_corruption import corrupt, sentinels_for, span_corruption
from lsp.data.objectives.translation import translation
from tests.data.rows import (
    EOS,
    EVERY_ROLE,
    HOW_MANY,
    MASK,
    PAD,
    SENTINELS,
    STOP,
    VOCABULARY,
    packed,
)

MAKE = {
    "span_corruption": span_corruption,
    "denoising": denoising,
    "gap_sentences": gap_sentences,
    "future_ngram": future_ngram,
    "translation": translation,
}


def sides(sample):
    """By document: what the encoder reads, what the decoder reads and what it predicts."""
    decoder_segments = sample.extra["decoder_segment_ids"]
    found = {}
    for number in np.unique(sample.segment_ids[sample.segment_ids > 0]):
        own = decoder_segments == number
        found[int(number)] = (
            sample.input_ids[sample.segment_ids == number].tolist(),
            sample.extra["decoder_input_ids"][own].tolist(),
            sample.labels[own].tolist(),
        )
    return found


def some_text(generator, length=40):
    text = generator.integers(5, 200, length)
    text[9::10] = STOP
    return [*text.tolist(), EOS]


# --- span corruption -----------------------------------------------------------------------------


def test_the_example_of_t5():
    # Thank you <X> me to your party <Y> week. -> <X> for inviting <Y> last <Z>
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    cut = np.array([word in ("for", "inviting", "last") for word in words])
    x, y, z = SENTINELS[:3]
    source, target = corrupt(np.arange(10, 21), cut, np.array(SENTINELS))
    assert source.tolist() == [10, 11, x, 14, 15, 16, 17, y, 19, 20]
    assert target.tolist() == [x, 12, 13, y, 18, z]


def put_together(source, target):
    """The document that encoder and decoder share."""
    spans, closing = {}, None
    for token in target:
        if token in SENTINELS:
            spans[token], closing = [], token
        elif token != EOS:
            spans[closing].append(token)
    assert list(spans) == SENTINELS[: len(spans)]
    assert spans.pop(closing) == []
    assert all(spans.values())
    return [part for token in source for part in spans.get(token, [token])]


@pytest.mark.parametrize("rows", HOW_MANY)
def test_spans_over_many_rows(rows):
    generator, config = np.random.default_rng(0), ObjectiveConfig("span_corruption")
    documents = [some_text(generator), some_text(generator, 20)[:-1], some_text(generator, 30)]
    lengths, firsts = [], []
    for seed in range(rows):
        row = packed(*documents, length=96)
        sample = span_corruption(row, stream(seed), config, EVERY_ROLE)
        found = sides(sample)
        for number, document in enumerate(documents, start=1):
            source, read, target = found[number]
            assert put_together(source, target) == document
            assert read == [PAD, *target[:-1]]
            assert (target[-1] == EOS) == (source[-1] == EOS) == (document[-1] == EOS)
        source, _, target = found[1]
        starts = [i for i, token in enumerate(target) if token in SENTINELS]
        lengths.append(np.diff(starts) - 1)
        firsts.append(source.index(SENTINELS[0]))
    # 40 tokens: 6 are cut out, in 2 spans, whatever they are.
    lengths = np.array(lengths)
    assert lengths.shape == (rows, 2)
    assert (lengths.sum(1) == 6).all()
    near = 1.5 / rows**0.5
    share = np.bincount(lengths[:, 0], minlength=6)[1:6] / rows
    assert np.abs(share - 1 / 5).max() < near
    # Text comes first, of every length up to that which leaves one token between.
    share = np.bincount(firsts, minlength=34)[1:34] / rows
    assert np.abs(share - 1 / 33).max() < near


def test_a_full_decoder_leaves_text_in_the_encoder():
    documents = [some_text(np.random.default_rng(n), 10) for n in range(6)]
    config = ObjectiveConfig("span_corruption", decoder_length=16)
    for seed in range(20):
        sample = span_corruption(packed(*documents), stream(seed), config, EVERY_ROLE)
        assert sample.labels.shape == (16,)
        found = sides(sample)
        for number, document in enumerate(documents, start=1):
            source, _, target = found[number]
            assert (put_together(source, target) if target else source) == document
        assert sum(bool(target) for _, _, target in found.values()) == 3


def test_few_sentinels_make_longer_spans():
    few = Vocabulary(306, MASK, EVERY_ROLE.special_ids, {"pad": 0, "eos": 1, "sentinel_0": 266})
    config = ObjectiveConfig("span_corruption")
    with pytest.raises(UserError, match="special tokens for sentinel_0, sentinel_1"):
        objectives.get(config, few)
    few.roles["sentinel_1"] = 267
    few = Vocabulary(306, MASK, EVERY_ROLE.special_ids, few.roles)
    sample = objectives.get(config, few)(packed(range(10, 60)), stream(0), config, few)
    source, _, target = sides(sample)[1]
    assert source.count(266) == 1
    assert len(target) == 2 + round(50 * 0.15)
    assert put_together(source, target) == list(range(10, 60))


def test_there_are_sentinels_for_the_longest_document():
    config = ObjectiveConfig("span_corruption")
    assert sentinels_for(config, 512) == 100
    assert sentinels_for(config, 4096) == round(4096 * 0.15 / 3) + 2


# --- denoising -----------------------------------------------------------------------------------


def test_sentences_change_places():
    text = np.array([10, 11, STOP, 12, STOP, 13, 14])
    begins = EVERY_ROLE.marks.sentences(text)
    orders = {tuple(permute(text, begins, stream(seed)).tolist()) for seed in range(100)}
    parts = ([10, 11, STOP], [12, STOP], [13, 14])
    expected = {
        (*parts[a], *parts[b], *parts[c])
        for a, b, c in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    }
    assert orders == expected


def holes(source, text):
    """How many tokens each mask of `source` stands for, in a text of different tokens."""
    kept = [text.index(token) for token in source if token != MASK]
    assert kept == sorted(kept)
    found, place = [], 0
    rest = iter([*kept, len(text)])
    following = next(rest)
    for number, token in enumerate(source):
        if token == MASK:
            assert number == 0 or source[number - 1] != MASK  # they do not touch
            found.append(following - place)
            place = following
        else:
            assert text[place] == token
            place += 1
            following = next(rest)
    assert place == len(text)
    return found


@pytest.mark.parametrize("rows", HOW_MANY)
def test_infilling_over_many_rows(rows):
    config, text = ObjectiveConfig("denoising"), list(range(5, 155))
    lengths = []
    for seed in range(rows // 5):
        source = infill(np.array(text), MASK, stream(seed), config)
        found = holes(source.tolist(), text)
        assert sum(found) == round(0.3 * len(text))
        lengths += found
    share = np.bincount(lengths, minlength=10)[:10] / len(lengths)
    poisson = [np.exp(-3) * 3.0**k / np.prod(range(1, k + 1)) for k in range(10)]
    # The last span of a text is cut where the share is reached.
    assert np.abs(share - poisson).max() < 0.02 + 1.5 / len(lengths) ** 0.5
    assert 2.7 < np.mean(lengths) < 3.1


def test_a_text_never_grows():
    config = ObjectiveConfig("denoising", mean_span_length=1.0)
    for seed in range(300):
        for length in (1, 2, 3, 7):
            text = np.arange(10, 10 + length)
            assert len(infill(text, MASK, stream(seed), config)) <= length
    everything = ObjectiveConfig("denoising", infill_rate=1.0)
    assert infill(np.arange(10, 40), MASK, stream(0), everything).tolist() == [MASK]


def test_the_decoder_writes_the_whole_document():
    generator, config = np.random.default_rng(0), ObjectiveConfig("denoising")
    documents = [some_text(generator), some_text(generator, 7)[:-1], [10, EOS], [EOS]]
    for seed in range(50):
        found = sides(denoising(packed(*documents, length=64), stream(seed), config, EVERY_ROLE))
        for number, document in enumerate(documents, start=1):
            source, read, target = found[number]
            assert target == document
            assert read == [EOS, *document[:-1]]
            assert set(source) <= {*document, MASK}
            assert (source[-1] == EOS) == (document[-1] == EOS)


def test_noise_of_other_kinds():
    config = ObjectiveConfig(
        "denoising", infill_rate=0.0, permute_sentences=False, token_mask_rate=0.5,
        token_delete_rate=0.5, rotate=True,
    )  # fmt: skip
    text = list(range(10, 250))
    source = denoising(packed(text), stream(0), config, EVERY_ROLE)
    ids = source.input_ids[source.segment_ids == 1].tolist()
    kept = [token for token in ids if token != MASK]
    turned = kept.index(min(kept))
    assert kept[turned:] + kept[:turned] == sorted(kept)
    assert turned > 0
    assert abs(len(ids) - 120) < 3 * 60**0.5
    assert abs(len(kept) - 60) < 3 * 45**0.5


def test_sentences_that_nothing_shows():
    config = ObjectiveConfig("denoising")
    with pytest.raises(UserError, match=r"objective\.permute_sentences=true needs a tokenizer"):
        objectives.get(config, Vocabulary(260, 3, VOCABULARY.special_ids, {"eos": 1, "pad": 0}))
    config = ObjectiveConfig("gap_sentences", pseudo_sentence=0)
    with pytest.raises(UserError, match=r"objective\.pseudo_sentence=0 needs .* use 32"):
        objectives.get(config, Vocabulary(260, 3, VOCABULARY.special_ids, {"eos": 1, "pad": 0}))


# --- gap sentences -------------------------------------------------------------------------------

# Four sentences; the second has most in common with the rest: 20 and 21, and the full stop.
SENTENCES = [[20, 22, STOP], [20, 21, 21, STOP], [30, 31, 32, 33, 34, STOP], [21, 35, STOP]]
ARTICLE = [token for sentence in SENTENCES for token in sentence]


def test_the_overlap_of_each_sentence_with_the_rest():
    text = np.array(ARTICLE)
    begins = EVERY_ROLE.marks.sentences(text)
    assert np.flatnonzero(begins).tolist() == [0, 3, 7, 13]
    # A token counts as often as it is on both sides: 21 is twice in the second, once elsewhere.
    found = overlaps(text, np.cumsum(begins) - 1, np.ones(len(text), bool))
    assert found.tolist() == [2, 3, 1, 2]
    config = ObjectiveConfig("gap_sentences")
    assert principal(text, begins, 99, config, EVERY_ROLE).tolist() == [1]
    more = ObjectiveConfig("gap_sentences", gap_sentence_ratio=0.5)
    assert principal(text, begins, 99, more, EVERY_ROLE).tolist() == [1, 0]
    # What does not fit gives its place to the next best.
    assert principal(text, begins, 3, config, EVERY_ROLE).tolist() == [0]
    assert principal(text, begins, 2, config, EVERY_ROLE).tolist() == []


def test_principal_sentences_are_written_in_order():
    config = ObjectiveConfig("gap_sentences", gap_sentence_ratio=0.5, decoder_length=32)
    row = packed([*ARTICLE, EOS], [40, 41, STOP, EOS], length=40)
    found = sides(gap_sentences(row, stream(0), config, EVERY_ROLE))
    source, read, target = found[1]
    assert source == [MASK, MASK, *SENTENCES[2], *SENTENCES[3], EOS]
    assert target == [*SENTENCES[0], *SENTENCES[1], EOS]
    assert read == [PAD, *target[:-1]]
    # A document of one sentence stays as it is.
    assert found[2] == ([40, 41, STOP, EOS], [], [])


def test_pieces_of_one_length_where_sentences_do_not_show():
    dumb = Vocabulary(260, MASK, VOCABULARY.special_ids, {"pad": 0, "eos": 1})
    config = ObjectiveConfig("gap_sentences", pseudo_sentence=4)
    row = packed([10, 11, 12, 13, 10, 11, 20, 21, 30, 31, EOS], length=16)
    source, _, target = sides(gap_sentences(row, stream(0), config, dumb))[1]
    assert source == [MASK, 10, 11, 20, 21, 30, 31, EOS]
    assert target == [10, 11, 12, 13, EOS]


@pytest.mark.parametrize("rows", HOW_MANY)
def test_gap_sentences_over_many_rows(rows):
    generator, config = np.random.default_rng(0), ObjectiveConfig("gap_sentences")
    counts = []
    for seed in range(rows):
        documents = [some_text(generator), some_text(generator, 30)]
        sample = gap_sentences(packed(*documents), stream(seed), config, EVERY_ROLE)
        for number, document in enumerate(documents, start=1):
            source, _, target = sides(sample)[number]
            gaps = iter(np.split(np.array(target[:-1]), range(10, len(target) - 1, 10)))
            whole = [t for token in source for t in (next(gaps) if token == MASK else [token])]
            assert whole == document
        counts.append(int((sample.input_ids == MASK).sum()))
    assert set(counts) == {2}  # of four sentences one, of three one


# --- future n-grams ------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", HOW_MANY)
def test_a_span_of_every_block(rows):
    config = ObjectiveConfig("future_ngram")
    text = np.random.default_rng(0).integers(5, 260, 128)
    starts, sizes, masks = [], [], 0
    for seed in range(rows):
        row = packed([*text, EOS], length=160)
        sample = future_ngram(row, stream(seed), config, EVERY_ROLE)
        assert sample.segment_ids.tolist() == row.segment_ids.tolist()
        (source, read, target) = sides(sample)[1]
        assert read == [PAD, *target[:-1]]
        assert (source[-1], target[-1]) == (EOS, EOS)
        masks += source.count(MASK)
        # The spans are what the decoder writes: found by trying where the text continues so.
        changed = np.flatnonzero(np.array(source[:-1]) != text)
        size = len(target) - 1
        blocks = [changed[changed < 64], changed[changed >= 64]]
        assert all(block.max() - block.min() < 10 for block in blocks if len(block))
        starts.append(blocks[0].min() if len(blocks[0]) else -1)
        sizes.append(size)
    near = 1.5 / rows**0.5
    assert set(sizes) == {18, 19, 20}  # 9.6 tokens of each block
    assert abs(np.mean(sizes) / 128 - 0.15) < near / 10
    assert abs(masks / np.sum(sizes) - 0.8) < near / 4
    assert np.percentile(starts, 10) < 10
    assert np.percentile(starts, 90) > 44


def test_spans_of_future_ngrams_are_pieces_of_the_document():
    config = ObjectiveConfig("future_ngram", block_length=8, mask_probability=0.5)
    documents = [[*range(10, 26), EOS], [*range(30, 38)]]
    found = sides(future_ngram(packed(*documents, length=32), stream(3), config, EVERY_ROLE))
    assert len(found[1][2]) == 9
    target = found[1][2]
    for block, span in ((range(10, 18), target[:4]), (range(18, 26), target[4:8])):
        assert span == list(range(span[0], span[0] + 4))
        assert set(span) <= set(block)
    assert len(found[2][2]) == 4


# --- translation ---------------------------------------------------------------------------------


def test_pairs_are_parted_at_the_first_eos():
    row = packed([10, 11, EOS, 20, EOS], [12, EOS, 21, 22, EOS], [13, 14], length=16)
    sample = translation(row, stream(0), ObjectiveConfig("translation"), EVERY_ROLE)
    assert sides(sample) == {
        1: ([10, 11, EOS], [PAD, 20], [20, EOS]),
        2: ([12, EOS], [PAD, 21, 22], [21, 22, EOS]),
        3: ([13, 14], [], []),
    }
    assert sample.segment_ids.tolist() == [1, 1, 1, 0, 0, 2, 2, 0, 0, 0, 3, 3, 0, 0, 0, 0]
    assert sample.extra["decoder_segment_ids"].tolist() == [1] * 2 + [2] * 3 + [0] * 11
    assert sample.extra["decoder_position_ids"].tolist() == [0, 1, 0, 1, 2] + [0] * 11
    assert (sample.labels[5:] == IGNORE_INDEX).all()


def test_the_token_that_a_decoder_begins_with():
    row = packed([10, EOS, 20, EOS])
    config = ObjectiveConfig("translation", decoder_start="cls")
    sample = translation(row, stream(0), config, EVERY_ROLE)
    assert sample.extra["decoder_input_ids"][0] == EVERY_ROLE.roles["cls"]


# --- all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKE)
def test_documents_begin_in_the_encoder_where_they_began(name):
    # Aligned documents: the second begins on a multiple of 16, after padding.
    config = ObjectiveConfig(name)
    ids = np.zeros(64, np.int64)
    segments = np.zeros(64, np.int64)
    ids[:13], segments[:13] = [*range(10, 17), STOP, 17, 18, EOS, 19, EOS], 1
    ids[16:60], segments[16:60] = 30 + np.arange(44) % 30, 2
    row = packed(ids.tolist())
    row = type(row)(ids, segments, row.another)
    for seed in range(20):
        sample = MAKE[name](row, stream(seed), config, EVERY_ROLE)
        assert np.flatnonzero(np.diff(sample.segment_ids, prepend=0) > 0).tolist() == [0, 16]
        assert (sample.input_ids[sample.segment_ids == 0] == PAD).all()
        assert sample.labels.shape == sample.extra["decoder_input_ids"].shape
        assert len(sample.labels) == config.decoder_tokens(64) <= 64
