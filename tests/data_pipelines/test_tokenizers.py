from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.config import TokenizerConfig
from data_pipelines.errors import DataError
from data_pipelines.text import pieces
from data_pipelines.tokenizers import Encoder, load_encoder, save_tokenizer, token_type
from tests.data_pipelines.corpora import make_text

ODD = "hé <eos> \x00\x7f 漢字 😀\r\n  x .  ' s\t\tif <0x41> \u00a0z <pad>  \n"
KINDS = ("bytes", "bpe", "unigram", "word")
VOCABULARY = {"bytes": 260, "bpe": 300, "unigram": 350, "word": 20}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp(kind)
        config = TokenizerConfig(kind=kind, vocab_size=VOCABULARY[kind])
        save_tokenizer(config, made[kind], lambda: [make_text(1, 2000)])
    return made


def auto(folder: Path):  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_auto_tokenizer_gives_the_same_tokens(kind: str, folders: dict[str, Path]) -> None:
    encoder, loaded = load_encoder(folders[kind]), auto(folders[kind])
    for text in (ODD, make_text(7, 500), ""):
        assert loaded.encode(text, add_special_tokens=False) == encoder.encode(text).tolist()
        assert loaded(text)["input_ids"] == encoder.encode(text).tolist()
    assert len(loaded) == encoder.vocab_size
    assert encoder.vocab_size <= VOCABULARY[kind]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram"])
def test_every_text_comes_back(kind: str, folders: dict[str, Path]) -> None:
    loaded = auto(folders[kind])
    everything = ODD + "".join(map(chr, [*range(1, 0x300), 0x20AC, 0x1F600, 0x10FFFF]))
    assert loaded.decode(loaded.encode(everything)) == everything


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens(kind: str, folders: dict[str, Path]) -> None:
    encoder, loaded = load_encoder(folders[kind]), auto(folders[kind])
    assert encoder.special_ids == {"pad": 0, "eos": 1, "unk": 2, "mask": 3}
    assert [loaded.pad_token_id, loaded.eos_token_id] == [0, 1]
    assert [loaded.unk_token_id, loaded.mask_token_id] == [2, 3]
    assert loaded.decode([0, 1, 3], skip_special_tokens=True) == ""
    # A text cannot contain a special token, whatever it spells.
    assert not {0, 1, 3} & set(encoder.encode("a <eos> <pad><mask> b").tolist())


def test_a_byte_is_a_token(folders: dict[str, Path]) -> None:
    encoder = load_encoder(folders["bytes"])
    assert encoder.encode(ODD).tolist() == [4 + byte for byte in ODD.encode()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [40, 500])
def test_pieces_give_the_tokens_of_the_whole(
    kind: str, limit: int, folders: dict[str, Path]
) -> None:
    encoder, text = load_encoder(folders[kind]), make_text(3, 3000)
    parts = [encoder.encode(piece) for piece in pieces([text], limit)]
    assert len(parts) > 10
    assert np.array_equal(np.concatenate(parts), encoder.encode(text))


def test_word_counts_decide_and_case_folds(tmp_path: Path) -> None:
    config = TokenizerConfig(kind="word", vocab_size=6, lowercase=True)
    save_tokenizer(config, tmp_path, lambda: ["A a a b B c"])
    assert load_encoder(tmp_path).encode("a A b c").tolist() == [4, 4, 5, 2]


@pytest.mark.parametrize(
    ("size", "name"), [(256, "uint8"), (257, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32")]
)
def test_smallest_type(size: int, name: str) -> None:
    assert token_type(size) == np.dtype(name)


def load_pretrained(source: Path, target: Path) -> Encoder:
    save_tokenizer(TokenizerConfig(kind="pretrained", name=str(source)), target, list)
    return load_encoder(target)


def test_pretrained_is_copied(folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = load_pretrained(folders["bpe"], tmp_path / "copy")
    assert encoder.special_ids == {"pad": 0, "eos": 1, "unk": 2, "mask": 3}
    text = make_text(2, 200)
    assert np.array_equal(encoder.encode(text), load_encoder(folders["bpe"]).encode(text))
    assert auto(tmp_path / "copy").encode(text) == encoder.encode(text).tolist()


def stripped(folder: Path, target: Path, *keep: str) -> Path:
    """A copy of a tokenizer with only some of its special tokens."""
    from transformers import PreTrainedTokenizerFast

    tokens = {f"{role}_token": f"<{role}>" for role in keep}
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), **tokens
    ).save_pretrained(target)
    return target


def test_pretrained_without_padding_pads_with_eos(folders: dict[str, Path], tmp_path: Path) -> None:
    source = stripped(folders["bytes"], tmp_path / "source", "eos")
    encoder = load_pretrained(source, tmp_path / "copy")
    assert encoder.special_ids == {"pad": 1, "eos": 1}


def test_pretrained_without_an_end_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    source = stripped(folders["bytes"], tmp_path / "source", "unk")
    with pytest.raises(DataError, match="none of the tokens eos, sep and pad"):
        load_pretrained(source, tmp_path / "copy")


def test_pretrained_truncation_is_ignored(folders: dict[str, Path], tmp_path: Path) -> None:
    source = stripped(folders["bytes"], tmp_path / "source", "eos", "pad")
    settings = json.loads((source / "tokenizer.json").read_text())
    settings["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (source / "tokenizer.json").write_text(json.dumps(settings))
    assert len(load_pretrained(source, tmp_path / "copy").encode("0123456789")) == 10


def test_pretrained_in_python(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path / "source")
    encoder = load_pretrained(tmp_path / "source", tmp_path / "copy")
    assert encoder.encode("é </s>").tolist() == [3 + byte for byte in "é </s>".encode()]
    assert encoder.special_ids == {"pad": 0, "eos": 1, "unk": 2}
    assert encoder.vocab_size > 256


def test_pretrained_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"tokenizer.name=.*empty cannot be loaded"):
        load_pretrained(tmp_path / "empty", tmp_path / "copy")


def test_a_vocabulary_that_cannot_be_learnt_is_refused(tmp_path: Path) -> None:
    config = TokenizerConfig(kind="unigram", vocab_size=261)
    with pytest.raises(DataError, match="vocab_size=261 cannot be learnt"):
        save_tokenizer(config, tmp_path, lambda: [make_text(1, 500)])


def test_unigram_spells_rare_characters_in_bytes(tmp_path: Path) -> None:
    many = "".join(map(chr, range(0x4E00, 0x5E00)))
    config = TokenizerConfig(kind="unigram", vocab_size=400)
    save_tokenizer(config, tmp_path, lambda: [make_text(1, 3000), many])
    assert load_encoder(tmp_path).vocab_size <= 400
    loaded = auto(tmp_path)
    assert loaded.decode(loaded.encode(many)) == many
