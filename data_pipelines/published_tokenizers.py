"""The tokenizers of the published Reformer, Longformer and Transformer-XL.

Each can be learnt from a corpus, or made from the vocabulary files that were published, and comes
out as a tokenizer of the `tokenizers` library:

- `sentencepiece_bpe` (Reformer): BPE over characters, a word beginning with `▁`; `<unk> <s> </s>`
  are 0, 1, 2. What the vocabulary lacks is `<unk>`. Published as `spiece.model`.
- `roberta` (Longformer): byte-level BPE; `<s> <pad> </s> <unk>` are 0 to 3, `<mask>` is last and
  takes the space before it; `<s> A </s>`, pairs `<s> A </s></s> B </s>`. Published as
  `vocab.json` and `merges.txt`.
- `transformer_xl`: whole words by their frequency, split as Moses does (see `moses.py`). Published
  as `vocab.txt`, or as a pickle, which is read without running it (see `plain_pickle.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.config import TokenizerConfig
from data_pipelines.errors import DataError
from data_pipelines.moses import moses_joining, moses_splitting, space_splitting
from data_pipelines.plain_pickle import read_plain_pickle
from data_pipelines.sentencepiece_model import read_sentencepiece
from data_pipelines.tokenizer_builders import Texts, byte_characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PICKLES = ("vocab.pkl", "vocab.bin")
"""Published Transformer-XL vocabularies: a pickle, and what `torch.save` made."""


@dataclass
class BuiltTokenizer:
    """A tokenizer and what its folder says of it.

    Attributes:
        tokenizer: Of the `tokenizers` library.
        roles: Special tokens by role: eos, unk, …
        tokenizer_class: Which class of `transformers` loads it.
        loading: Further keys of `tokenizer_config.json`.
        words: The vocabulary with counts, where that is all there is to it.
    """

    tokenizer: Tokenizer
    roles: dict[str, str]
    tokenizer_class: str = "PreTrainedTokenizerFast"
    loading: dict[str, Any] = field(default_factory=dict)
    words: dict[str, int] | None = None

    def add_special(self, tokens: dict[str, str]) -> None:
        """Gives the next ids to special tokens, by role."""
        from tokenizers import AddedToken

        added = [AddedToken(token, special=True, normalized=False) for token in tokens.values()]
        self.tokenizer.add_special_tokens(added)
        self.roles |= tokens

    def save(self, folder: Path) -> dict[str, int]:
        """Writes the published files but `tokenizer_config.json`; returns ids by role."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        if self.tokenizer_class == "RobertaTokenizer":
            self.tokenizer.model.save(str(folder))
        if self.words is not None:
            lines = [f"{word} {count}\n" for word, count in self.words.items()]
            (folder / "vocab.txt").write_text("".join(lines), encoding="utf-8")
        return {role: self.id_of(token) for role, token in self.roles.items()}

    def id_of(self, token: str) -> int:
        """The id of a token that there is."""
        number = self.tokenizer.token_to_id(token)
        assert number is not None
        return number


def learn_sentencepiece_bpe(config: TokenizerConfig, texts: Texts) -> BuiltTokenizer:
    """Learns the Reformer's kind of vocabulary.

    The vocabulary is learnt line by line, so that no piece has a line's end or a tab within.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Sequence(
        [_metaspace(), pre_tokenizers.Split(Regex(r"[\t\r\n]"), "isolated")]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=special,
        limit_alphabet=max(1, config.vocab_size // 2),
        initial_alphabet=["\u2581"],
        show_progress=False,
    )
    learnt.train_from_iterator(texts(), trainer)
    model = json.loads(learnt.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return _sentencepiece_bpe(model["vocab"], merges, control=["<s>", "</s>"])


def _sentencepiece_bpe(
    vocabulary: dict[str, int],
    merges: list[Any],
    *,
    control: list[str],
    unknown: str = "<unk>",
    charsmap: bytes = b"",
) -> BuiltTokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True))
    if charsmap:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
        )
    tokenizer.pre_tokenizer = _metaspace()
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    special = [unknown, *control]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    if "</s>" not in vocabulary:
        raise DataError("a spiece.model without </s> has nothing to end a document with")
    roles = {"eos": "</s>", "unk": unknown}
    return BuiltTokenizer(tokenizer, roles, "ReformerTokenizer")


def _metaspace() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")


_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>"]  # <mask> comes last


def learn_roberta(config: TokenizerConfig, texts: Texts) -> BuiltTokenizer:
    """Learns the Longformer's kind of vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - 1,
        special_tokens=_ROBERTA,
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    learnt.train_from_iterator(texts(), trainer)
    model = json.loads(learnt.to_str())["model"]
    vocabulary = model["vocab"] | {"<mask>": len(model["vocab"])}
    merges = [tuple(pair) for pair in model["merges"]]
    return _roberta(vocabulary, merges, add_prefix_space=config.add_prefix_space)


def _roberta(
    vocabulary: dict[str, int], merges: list[Any], *, add_prefix_space: bool
) -> BuiltTokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in _ROBERTA]
        + [AddedToken("<mask>", special=True, normalized=False, lstrip=True)]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), True, add_prefix_space
    )
    roles = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>"}
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False}
    mask |= {"normalized": False, "single_word": False, "special": True}
    loading = {"add_prefix_space": add_prefix_space, "trim_offsets": True, "mask_token": mask}
    return BuiltTokenizer(
        tokenizer, roles | {"unk": "<unk>", "mask": "<mask>"}, "RobertaTokenizer", loading
    )


def learn_transformer_xl(config: TokenizerConfig, texts: Texts) -> BuiltTokenizer:
    """Counts words; the most frequent become the vocabulary, after `<eos>` and `<unk>`."""
    eos = "<S>" if config.add_double_eos else "<eos>"
    normalizer = _word_normalizer(config, eos)
    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(normalizer.normalize_str(text).split())
    words = {special: counts.pop(special, 0) for special in (eos, "<unk>")}
    for word, count in counts.most_common(config.vocab_size - len(words)):
        if count < config.min_freq:
            break
        words[word] = count
    return _transformer_xl(words, normalizer, eos=eos, double_eos=config.add_double_eos)


def _word_normalizer(config: TokenizerConfig, eos: str) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.Lowercase()] if config.lowercase else []
    line_ends = config.add_eos or config.add_double_eos
    returns = "\r\n?" if line_ends else "\r|\n"
    steps += [normalizers.Replace(Regex(returns), "\n" if line_ends else " ")]
    steps += moses_splitting() if config.splitting == "moses" else space_splitting(eos)
    if config.add_double_eos:  # between two lines, and after the last
        steps += [normalizers.Replace(Regex(r"\n(?=[\s\S])"), f" {eos} {eos} ")]
    if line_ends:
        steps += [normalizers.Replace("\n", f" {eos} ")]
    return normalizers.Sequence(steps)


def _transformer_xl(
    words: dict[str, int],
    normalizer: Any,
    *,
    eos: str,
    unknown: str = "<unk>",
    double_eos: bool = False,
) -> BuiltTokenizer:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = moses_joining()
    special = [AddedToken(t, special=True, normalized=False) for t in (eos, unknown)]
    tokenizer.add_special_tokens(special)
    if double_eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{eos} $A {eos}",
            pair=f"{eos} $A {eos} {eos} $B {eos}",
            special_tokens=[(eos, vocabulary[eos])],
        )
    loading = {"add_double_eos": True} if double_eos else {}
    return BuiltTokenizer(tokenizer, {"eos": eos, "unk": unknown}, loading=loading, words=words)


def from_published(folder: Path) -> BuiltTokenizer | None:
    """Makes the tokenizer of a folder that has vocabulary files and nothing `transformers` opens.

    Returns:
        None where `transformers` can be asked.

    Raises:
        DataError: a file is damaged, or a pickle asks for more than plain containers.
    """
    if (folder / "tokenizer.json").exists():
        return None
    settings, model = _json(folder / "tokenizer_config.json"), _json(folder / "config.json")
    named = f"{settings.get('tokenizer_class', '')} {model.get('model_type', '')}".lower()
    anonymous = not named.strip()
    if (folder / "spiece.model").exists() and (anonymous or "reformer" in named):
        pieces = read_sentencepiece(folder / "spiece.model")
        return _sentencepiece_bpe(
            pieces.vocabulary,
            pieces.merges,
            control=pieces.control,
            unknown=pieces.unknown,
            charsmap=pieces.charsmap,
        )
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists() and anonymous:
        return _published_roberta(folder)
    if "transfo" in named or any((folder / name).exists() for name in PICKLES):
        return _published_words(folder, settings)
    if anonymous and (folder / "vocab.txt").exists():
        words = _text_vocabulary(folder / "vocab.txt")
        return _published_words(folder, settings) if _unknown_of(words) else None
    return None


def _published_roberta(folder: Path) -> BuiltTokenizer | None:
    vocabulary = _json(folder / "vocab.json")
    if not {*_ROBERTA, "<mask>"} <= set(vocabulary):
        return None  # GPT-2's, for example
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return _roberta(vocabulary, merges, add_prefix_space=False)


def _published_words(folder: Path, settings: dict[str, Any]) -> BuiltTokenizer:
    path = next((folder / n for n in (*PICKLES, "vocab.txt") if (folder / n).exists()), None)
    if path is None:
        raise DataError(f"{folder} has no vocabulary: neither vocab.txt nor {', '.join(PICKLES)}")
    saved: dict[str, Any] = {}
    if path.name in PICKLES:
        saved = read_plain_pickle(path)
        words = _pickled_vocabulary(path, saved)
    else:
        words = _text_vocabulary(path)
    unknown = _unknown_of(words)
    named = settings.get("eos_token")
    if isinstance(named, dict):  # as older releases wrote them, with how to find them in texts
        named = named.get("content")
    eos = next((t for t in (named, "<eos>", "<S>") if t in words), None)
    if unknown is None or eos is None:
        missing = "<unk>" if unknown is None else "<eos>"
        raise DataError(f"{path} has no {missing}: it is not a vocabulary of Transformer-XL")
    lowercase = bool(settings.get("lower_case", saved.get("lower_case", False)))
    config = TokenizerConfig(kind="transformer_xl", lowercase=lowercase)
    return _transformer_xl(words, _word_normalizer(config, eos), eos=eos, unknown=unknown)


def _pickled_vocabulary(path: Path, saved: Any) -> dict[str, int]:
    words = saved.get("idx2sym") if isinstance(saved, dict) else None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{path} holds no idx2sym, the list of words: give a vocab.txt")
    counts = saved.get("counter", {})
    counts = counts if isinstance(counts, dict) else {}
    return {word: int(counts.get(word, 0)) for word in words}


def _text_vocabulary(path: Path) -> dict[str, int]:
    """A word per line, perhaps with its count; of one that is there twice the first counts."""
    words: dict[str, int] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            word, *rest = line.split()[:2] or [""]
            if word:
                count = int(rest[0]) if rest and rest[0].isdecimal() else 0
                words.setdefault(word, count)
    return words


def _unknown_of(words: Iterable[str]) -> str | None:
    return next((token for token in ("<UNK>", "<unk>") if token in words), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}
