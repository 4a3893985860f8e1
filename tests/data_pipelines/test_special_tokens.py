"""Special tokens that an objective asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines import sources
from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.errors import DataError
from data_pipelines.prepare import fingerprint
from data_pipelines.tokenizers import load_encoder, save_tokenizer
from tests.data_pipelines.conftest import Prepare
from tests.data_pipelines.corpora import make_text

ROLES = ("cls", "sep", "question", "fim_prefix", "sentinel_0", "sentinel_1")
SIZES = {"bytes": 260, "bpe": 300, "unigram": 350, "word": 26}


@pytest.fixture(scope="module", params=SIZES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    config = TokenizerConfig(kind=request.param, vocab_size=SIZES[request.param])
    save_tokenizer(config, made, lambda: [make_text(1, 2000)], ROLES)
    return made


def test_they_come_last_and_within_the_size(folder: Path) -> None:
    encoder = load_encoder(folder)
    own = {"pad": 0, "eos": 1, "unk": 2, "mask": 3}
    last = range(encoder.vocab_size - len(ROLES), encoder.vocab_size)
    assert encoder.special_ids == own | dict(zip(ROLES, last, strict=True))
    size = SIZES[folder.name.rstrip("0123456789")]
    assert encoder.vocab_size <= size + (len(ROLES) if "bytes" in folder.name else 0)


def test_transformers_knows_them(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    encoder, loaded = load_encoder(folder), AutoTokenizer.from_pretrained(folder)
    assert (loaded.cls_token, loaded.sep_token) == ("<cls>", "<sep>")
    assert loaded.cls_token_id == encoder.special_ids["cls"]
    assert loaded.convert_tokens_to_ids("<extra_id_1>") == encoder.special_ids["sentinel_1"]
    ids = [encoder.special_ids[role] for role in ROLES]
    assert set(ids) <= set(loaded.all_special_ids)
    assert loaded.decode(ids, skip_special_tokens=True) == ""
    assert loaded.decode(ids[:1]) == "<cls>"
    # As text they are text, after saving them once more too.
    text = "a <cls><extra_id_0> b <question> <fim_prefix>"
    loaded.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for tokenizer in (loaded, again):
        assert tokenizer(text)["input_ids"] == encoder.encode(text).tolist()
        assert not set(ids) & set(encoder.encode(text).tolist())
        assert len(tokenizer) == encoder.vocab_size
        assert set(ids) <= set(tokenizer.all_special_ids)


def test_a_vocabulary_needs_room_for_them(tmp_path: Path) -> None:
    config = TokenizerConfig(kind="bpe", vocab_size=264)
    with pytest.raises(DataError, match=r"vocab_size=264 is too small .* give more than 266"):
        save_tokenizer(config, tmp_path, lambda: ["text"], ROLES)


def test_other_tokenizers_use_what_they_have(tmp_path: Path) -> None:
    config = TokenizerConfig(kind="roberta", vocab_size=280)
    save_tokenizer(config, tmp_path / "pairs", lambda: [make_text(1, 500)], ("cls", "sep"))
    special = load_encoder(tmp_path / "pairs").special_ids
    assert (special["cls"], special["sep"]) == (0, 2)
    with pytest.raises(DataError, match="tokenizer=roberta has no special token for sentinel,"):
        save_tokenizer(config, tmp_path / "no", lambda: [make_text(1, 500)], ("sentinel_0",))


def test_pretrained_ones_are_asked_by_their_spellings(tmp_path: Path, folder: Path) -> None:
    config = TokenizerConfig(kind="pretrained", name=str(folder))
    # Of sentinels there are as many as there are.
    wanted = ("cls", "fim_prefix", "sentinel_0", "sentinel_1", "sentinel_2")
    save_tokenizer(config, tmp_path / "has", lambda: [], wanted)
    there = load_encoder(folder).special_ids
    special = load_encoder(tmp_path / "has").special_ids
    assert {role: special.get(role) for role in wanted} == {
        role: there.get(role) for role in wanted
    }
    with pytest.raises(DataError, match=r"tokenizer\.name=.* no special token for fim_suffix, bos"):
        save_tokenizer(config, tmp_path / "lacks", lambda: [], ("cls", "fim_suffix", "bos"))


def test_manifest_and_fingerprint(prepare_text: Prepare, corpus: Path) -> None:
    plain = prepare_text(paths=[str(corpus)])
    special = prepare_text(paths=[str(corpus)], special=("cls", "sep"))
    assert special.path != plain.path
    ids = special.manifest["tokenizer"]["special_ids"]
    assert ids == {"pad": 0, "eos": 1, "unk": 2, "mask": 3, "cls": 260, "sep": 261}
    assert special.manifest["tokenizer"]["vocab_size"] == 262


def test_corpora_of_earlier_versions_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "identity", lambda data: [])
    data = DataConfig(source="text", paths=["a.txt"])
    made = fingerprint(data, TokenizerConfig(), PackingConfig(), 128, 1, 0)
    assert made == "2c5b51b50b0772ad462343885bf2fe92a56a75da84f1d79d60d231ee8868fdec"
