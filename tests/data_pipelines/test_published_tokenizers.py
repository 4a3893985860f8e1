"""The published Reformer's, Longformer's and Transformer-XL's tokenizers."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.config import TokenizerConfig
from data_pipelines.errors import DataError
from data_pipelines.text import pieces
from data_pipelines.tokenizers import load_encoder, save_published, save_tokenizer
from tests.data_pipelines.corpora import make_text

ODD = "hé <eos> </s> \x07 漢字 😀\r\n  x .  ' s\t\tif\u00a0z <mask>  <unk> \n"
CONFIGS: dict[str, dict[str, Any]] = {
    "sentencepiece_bpe": {"kind": "sentencepiece_bpe", "vocab_size": 120},
    "roberta": {"kind": "roberta", "vocab_size": 330},
    "roberta_prefix": {"kind": "roberta", "vocab_size": 330, "add_prefix_space": True},
    "transformer_xl": {"kind": "transformer_xl", "vocab_size": 40},
    "lines": {"kind": "transformer_xl", "vocab_size": 40, "add_eos": True},
    "pairs": {"kind": "transformer_xl", "vocab_size": 40, "add_double_eos": True},
}


def text_of(seed: int, words: int) -> str:
    return make_text(seed, words).replace("def", "3,000 well-known").replace("f(x)", "it's 1.5")


def learn(folder: Path, text: str = "", **config: Any) -> Path:
    save_tokenizer(TokenizerConfig(**config), folder, lambda: [text or text_of(1, 2000)])
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: learn(tmp_path_factory.mktemp(name), **c) for name, c in CONFIGS.items()}


def auto(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_auto_tokenizer_gives_the_same_tokens(name: str, folders: dict[str, Path]) -> None:
    encoder, loaded = load_encoder(folders[name]), auto(folders[name])
    for text in (ODD, text_of(7, 500), ""):
        assert loaded.encode(text, add_special_tokens=False) == encoder.encode(text).tolist()
    assert len(loaded) == encoder.vocab_size <= CONFIGS[name]["vocab_size"]


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_by_transformers_again(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    auto(folders[name]).save_pretrained(tmp_path)
    text = text_of(5, 200) + ODD
    assert auto(tmp_path)(text).input_ids == auto(folders[name])(text).input_ids


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("limit", [200, 600])
def test_pieces_give_the_tokens_of_the_whole(
    name: str, limit: int, folders: dict[str, Path]
) -> None:
    encoder, text = load_encoder(folders[name]), text_of(3, 3000)
    parts = [encoder.encode(piece) for piece in pieces([text], limit)]
    assert len(parts) > 10
    assert np.array_equal(np.concatenate(parts), encoder.encode(text))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_cannot_end_itself(name: str, folders: dict[str, Path]) -> None:
    encoder = load_encoder(folders[name])
    spelled = "a <eos> </s> <S> <pad><mask> <s>"
    special = set(encoder.special_ids.values()) - {encoder.special_ids["unk"]}
    assert not special & set(encoder.encode(spelled).tolist())


@pytest.mark.parametrize("prefix", [False, True])
def test_roberta_is_that_of_transformers(
    prefix: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import RobertaTokenizerFast

    folder = folders["roberta_prefix" if prefix else "roberta"]
    reference = RobertaTokenizerFast(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        add_prefix_space=prefix,
    )
    ours = auto(folder)
    assert isinstance(ours, RobertaTokenizerFast)
    a, b = text_of(4, 50), " quick fox"
    for pair in ((a, b), (b, a), (a,), ("",)):
        mine = ours(*pair, return_special_tokens_mask=True, return_token_type_ids=True)
        assert dict(mine) == dict(
            reference(*pair, return_special_tokens_mask=True, return_token_type_ids=True)
        )
    first, second = (ours(t, add_special_tokens=False).input_ids for t in (a, b))
    assert ours(a, b).input_ids == [0, *first, 2, 2, *second, 2]
    roles = ("bos", "cls", "pad", "eos", "sep", "unk", "mask")
    assert [getattr(ours, f"{role}_token_id") for role in roles] == [0, 0, 1, 2, 2, 3, 329]
    assert ours.decode(first) == (" " + a if prefix else a)

    # The space before the mask is the mask's.
    def ids(text: str) -> Any:
        return ours(text, split_special_tokens=False, add_special_tokens=False).input_ids

    assert ids("fox <mask> dog") == [*ids("fox"), 329, *ids(" dog")]


def test_prefix_space_makes_the_first_word_like_any_other(folders: dict[str, Path]) -> None:
    plain, prefixed = (load_encoder(folders[name]) for name in ("roberta", "roberta_prefix"))
    assert plain.encode("lazy").tolist() != plain.encode(" lazy").tolist()
    assert prefixed.encode("lazy").tolist() == prefixed.encode(" lazy").tolist()


def test_reformer_is_that_of_transformers(folders: dict[str, Path]) -> None:
    from transformers import ReformerTokenizer

    model = json.loads((folders["sentencepiece_bpe"] / "tokenizer.json").read_text())["model"]
    reference = ReformerTokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]]
    )
    ours = auto(folders["sentencepiece_bpe"])
    assert isinstance(ours, ReformerTokenizer)
    for text in ("the quick brown fox\n\tzzz ¿", text_of(9, 100), " ", "a  b"):
        assert ours(text).input_ids == reference(text).input_ids
        assert ours.decode(ours(text).input_ids) == reference.decode(reference(text).input_ids)
    assert (ours.unk_token_id, ours.eos_token_id) == (0, 2)
    assert not [piece for piece in model["vocab"] if "\n" in piece[1:] or "\n" in piece[:-1]]


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protocol buffer."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def spiece(tokens: list[str], model_type: int = 2) -> bytes:
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    pieces_ = [field(1, t.encode()) + field(3, kinds.get(t, 1)) for t in tokens]
    trainer = field(2, field(3, model_type) + field(40, 0))
    return b"".join(field(1, piece) for piece in pieces_) + trainer + field(3, field(1, b"x"))


PIECES = ["<unk>", "<s>", "</s>", "▁t", "he", "▁the", "re", "▁", "t", "h", "e", "r"]


def test_published_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(spiece(PIECES))
    assert save_published(tmp_path, tmp_path / "out") == len(PIECES)
    encoder, loaded = load_encoder(tmp_path / "out"), auto(tmp_path / "out")
    # "the re": ▁the before ▁t and he apart; "x" is unknown, "xx" too, once.
    assert encoder.encode("there rexx").tolist() == [5, 6, 7, 6, 0]
    assert loaded("there rexx").input_ids == [5, 6, 7, 6, 0]
    assert encoder.special_ids == {"eos": 2, "unk": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (spiece(PIECES, model_type=1), "holds no BPE model"),
        (spiece(PIECES)[:-3], "is not a SentencePiece model"),
        (b"", "it has no pieces"),
        (spiece(["<unk>", "a"]), "without </s>"),
    ],
)
def test_a_damaged_sentencepiece_model_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(DataError, match=message):
        save_published(tmp_path, tmp_path / "out")


def test_published_vocab_and_merges(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folders["roberta"] / name).read_bytes())
    assert save_published(tmp_path, tmp_path / "out") == 330
    text = text_of(2, 100)
    again, first = load_encoder(tmp_path / "out"), load_encoder(folders["roberta"])
    assert again.encode(text).tolist() == first.encode(text).tolist()


def test_words_by_their_counts(tmp_path: Path) -> None:
    config = {"kind": "transformer_xl", "lowercase": True, "min_freq": 2}
    learn(tmp_path, "b A a a B c 1,000 1.5 1", **config)
    assert (tmp_path / "vocab.txt").read_text().split("\n") == [
        "<eos> 0", "<unk> 0", "a 3", "1 3", "b 2", "",
    ]  # fmt: skip
    loaded = auto(tmp_path)
    assert loaded("A b C 1").input_ids == [2, 4, 1, 3]
    assert (loaded.eos_token_id, loaded.unk_token_id) == (0, 1)


def test_max_size_counts_the_special_tokens(tmp_path: Path) -> None:
    learn(tmp_path, "a b a", kind="transformer_xl", vocab_size=5, splitting="spaces")
    assert load_encoder(tmp_path).encode("a b c").tolist() == [2, 3, 1]


def test_numbers_come_back(tmp_path: Path) -> None:
    text = "23,000 people are 1.80 m tall"
    loaded = auto(learn(tmp_path, text, kind="transformer_xl", vocab_size=50))
    ids = loaded(text).input_ids
    assert " ".join(loaded.convert_ids_to_tokens(ids)) == "23 @,@ 000 people are 1 @.@ 80 m tall"
    assert loaded.decode(ids) == text


def test_spaces_split_what_is_split_already(tmp_path: Path) -> None:
    text = "= Title =\n 3 @.@ 5 <unk> don 't"
    learn(tmp_path, text, kind="transformer_xl", vocab_size=50, splitting="spaces", add_eos=True)
    encoder, loaded = load_encoder(tmp_path), auto(tmp_path)
    tokens = loaded.convert_ids_to_tokens(encoder.encode(text))
    assert " ".join(tokens) == "= Title = <eos> 3 @.@ 5 <unk> don 't"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lines", "the <eos> <eos> over <eos>"),
        ("pairs", "<S> the <S> <S> <S> <S> over <S>"),
    ],
)
@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_line_ends_become_tokens(
    name: str, expected: str, ending: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    from data_pipelines.config import DataConfig, PackingConfig
    from data_pipelines.prepare import prepare

    # A document as a corpus has it: its end is that of its last line.
    (tmp_path / "a.txt").write_bytes(b"the\n\nover" + ending.encode())
    prepared = prepare(
        DataConfig(
            source="text",
            paths=[str(tmp_path / "a.txt")],
            validation_fraction=0,
            num_processes=1,
            cache_root=str(tmp_path / "prepared"),
        ),
        TokenizerConfig(kind="pretrained", name=str(folders[name])),
        PackingConfig(),
        sequence_length=16,
        progress=False,
    )
    ids, segments = prepared.split("train").row(0)
    tokens = auto(folders[name]).convert_ids_to_tokens(ids[segments > 0].tolist())
    assert tokens == expected.split()


WORDS = ["<eos>", "the", "<unk>", "quick", ",", "fox", "'s", "@-@"]


def published_words(**more: Any) -> dict[str, Any]:
    """What the published vocabularies hold."""
    return {
        "counter": Counter({"the": 5, "quick": 2}),
        "special": ["<eos>"],
        "min_freq": 0,
        "max_size": None,
        "lower_case": True,
        "delimiter": None,
        "vocab_file": None,
        "idx2sym": WORDS,
        "sym2idx": OrderedDict((word, number) for number, word in enumerate(WORDS)),
        "eos_idx": 0,
        "unk_idx": 2,
        "never_split": {"<eos>", "<unk>"},
    } | more


def write_pickle(path: Path, content: Any, form: str) -> None:
    if form == "torch":
        import torch

        torch.save(content, path)
    elif form == "torch_legacy":
        import torch

        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(form)))


@pytest.mark.parametrize(
    ("name", "form"),
    [("vocab.pkl", "0"), ("vocab.pkl", "2"), ("vocab.pkl", "4"), ("vocab.bin", "torch"),
     ("vocab.bin", "torch_legacy")],
)  # fmt: skip
def test_pickled_vocabulary(name: str, form: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_pickle(tmp_path / "source" / name, published_words(), form)
    config = TokenizerConfig(kind="pretrained", name=str(tmp_path / "source"))
    save_tokenizer(config, tmp_path / "out", list)
    encoder, loaded = load_encoder(tmp_path / "out"), auto(tmp_path / "out")
    assert encoder.encode("The quick-fox's, dog").tolist() == [1, 3, 7, 5, 6, 4, 2]
    assert loaded("The quick-fox's, dog").input_ids == [1, 3, 7, 5, 6, 4, 2]
    assert encoder.special_ids == {"eos": 0, "unk": 2}
    assert (tmp_path / "out" / "vocab.txt").read_text().startswith("<eos> 0\nthe 5\n")


def test_pickled_vocabulary_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which `transformers` does not open any more."""
    import huggingface_hub
    import transformers

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no tokenizer of that kind")

    (tmp_path / "fetched").mkdir()
    write_pickle(tmp_path / "fetched" / "vocab.pkl", published_words(), "2")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **kwargs: tmp_path / "fetched"
    )
    config = TokenizerConfig(kind="pretrained", name="transfo-xl/transfo-xl-wt103")
    save_tokenizer(config, tmp_path / "out", list)
    assert load_encoder(tmp_path / "out").encode("the fox").tolist() == [1, 5]


def test_text_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("<S>\nthe 10\n<UNK> 3\nfox\nthe\n")
    assert save_published(tmp_path, tmp_path / "out") == 4
    assert load_encoder(tmp_path / "out").encode("the dog, fox").tolist() == [1, 2, 2, 3]


def test_the_end_token_may_be_described(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("<eos>\nthe\n<unk>\n<end>\n")
    described = {"__type": "AddedToken", "content": "<end>", "lstrip": False}
    settings = {"tokenizer_class": "TransfoXLTokenizer", "eos_token": described}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    save_published(tmp_path, tmp_path / "out")
    assert load_encoder(tmp_path / "out").special_ids == {"eos": 3, "unk": 2}


ROBERTA = json.dumps({t: n for n, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a"])})


@pytest.mark.parametrize(
    "files",
    [
        {"vocab.txt": b"<eos>\n\xe9\n<unk>\n"},
        {"vocab.json": ROBERTA.encode(), "merges.txt": b"a b c\n"},
        {"vocab.json": ROBERTA.encode(), "merges.txt": b"a b\n"},
        {"vocab.pkl": pickle.dumps({"idx2sym": ["<eos>", "<unk>"], "counter": {"<eos>": "x"}})},
    ],
    ids=["encoding", "three", "unknown", "count"],
)
def test_damaged_vocabulary_files_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"no tokenizer can be made of its vocabulary files: ."):
        save_published(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_vocabulary_is_left_to_transformers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\n")
    assert save_published(tmp_path, tmp_path / "out") is None


class Evil:
    ran = False

    def __reduce__(self) -> Any:
        return setattr, (Evil, "ran", True)


class Plain:
    pass


@pytest.mark.parametrize("name", ["vocab.pkl", "vocab.bin"])
@pytest.mark.parametrize("form", ["2", "4", "torch", "torch_legacy"])
@pytest.mark.parametrize("what", ["code", "object", "array"])
def test_a_pickle_that_asks_for_more_is_refused(
    what: str, form: str, name: str, tmp_path: Path
) -> None:
    more = {"code": Evil(), "object": Plain(), "array": np.arange(3)}[what]
    write_pickle(tmp_path / name, published_words(more=more), form)
    with pytest.raises(DataError, match=r"it asks for .*vocab\.txt") as refused:
        save_published(tmp_path, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not Evil.ran


@pytest.mark.parametrize("name", ["collections\nCounter", "collections\nOrderedDict"])
def test_a_pickle_changes_no_class(name: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.pkl").write_bytes(f"c{name}\n".encode() + b"N}S'changed'\nI1\ns\x86b.")
    with pytest.raises(DataError, match="cannot set 'changed'"):
        save_published(tmp_path, tmp_path / "out")
    assert not hasattr(Counter, "changed")


def zipped(content: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return held.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", pickle.dumps([1, 2]), pickle.dumps({"idx2sym": [1]}), zipped(b"")],
    ids=["empty", "text", "list", "numbers", "zip"],
)
def test_a_damaged_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "vocab.pkl").write_bytes(content)
    with pytest.raises(DataError, match="vocab"):
        save_published(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"kind": "bpe", "add_eos": True},
            "tokenizer.add_eos=True is for tokenizer=transformer_xl",
        ),
        ({"kind": "roberta", "vocab_size": 261}, "vocab_size=261 is too small"),
        ({"kind": "transformer_xl", "splitting": "x"}, "tokenizer.splitting"),
        ({"kind": "transformer_xl", "add_eos": True, "add_double_eos": True}, "set one of them"),
        ({"kind": "transformer_xl", "min_freq": -1}, "tokenizer.min_freq=-1"),
    ],
)
def test_what_does_not_go_together_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TokenizerConfig(**config)
