"""What a user can choose about data: where documents come from, how they become tokens and rows.

Plain dataclasses of primitives, so that they serve as structured configs. Each checks itself, and
its messages name the keys as they are typed: `data.paths`, `tokenizer.vocab_size`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from data_pipelines.errors import require, unknown_choice

SOURCES = ("python_library", "text", "jsonl", "parquet", "hub_dataset")
DOCUMENTS = ("file", "line", "paragraph")
ENCODING_ERRORS = ("replace", "ignore", "strict", "skip")
TOKENIZERS = (
    "bytes", "bpe", "unigram", "word", "sentencepiece_bpe", "roberta", "transformer_xl",
    "pretrained",
)  # fmt: skip
SPLITTINGS = ("moses", "spaces")
STRATEGIES = ("concatenate", "best_fit", "one_per_row")

SPECIAL_TOKENS = {"pad": "<pad>", "eos": "<eos>", "unk": "<unk>", "mask": "<mask>"}
"""Special tokens of bytes, bpe, unigram and word; their ids are 0, 1, 2, 3."""

SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
"""Special tokens and one token per byte: less cannot spell every text."""


@dataclass
class DataConfig:
    """Where documents come from.

    Attributes:
        source: `python_library` (the `.py` files of the running interpreter's own library),
            `text`, `jsonl`, `parquet`, or `hub_dataset` (whatever `datasets.load_dataset` loads).
        paths: Files, globs (`**` goes down) or folders, for text, jsonl and parquet; for
            hub_dataset the optional `data_files`. `.gz` is read for text and jsonl.
        field: Name of the field or column that holds the text (jsonl, parquet, hub_dataset).
        target_field: Name of a second one, for pairs of texts (`objective=translation`): the
            document then is the first text, eos, the second text, eos. With `best_fit` what is
            longer than a row loses its end.
        document: What one document is in a text file: the whole `file`, a `line`, or a
            `paragraph` (lines up to a blank one).
        encoding_errors: What invalid UTF-8 becomes: `replace` (U+FFFD), `ignore` (left out),
            `skip` (the document is dropped), `strict` (refused, naming the file). Counted.
        name: Hub name, local folder or builder (`json`, `parquet`, …) of a hub_dataset.
        config_name: Configuration of a hub_dataset.
        split: Split of a hub_dataset that is read.
        revision: Commit or tag of a hub_dataset; pin it to make the corpus reproducible.
        streaming: Read a hub_dataset without downloading it first.
        max_documents: Stop after so many documents.
        max_bytes: Stop after so many bytes of text. A text file is cut at the limit, a record
            that crosses it is kept whole.
        validation_fraction: Share of documents held out, chosen by the hash of their beginning:
            it depends on neither order nor number of processes, and copies stay together.
            A corpus of one text file gives its last part instead.
        shuffle_documents: Order documents by hash; otherwise keep the order of the source.
        num_processes: Processes that tokenize; 0 for one per core.
        unit_bytes: Size of one unit of work, which is what an interruption can cost.
        cache_root: Folder under which prepared corpora lie.
    """

    source: str = "python_library"
    paths: list[str] = dataclasses.field(default_factory=list)
    field: str = "text"
    target_field: str | None = None
    document: str = "file"
    encoding_errors: str = "replace"
    name: str | None = None
    config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    max_documents: int | None = None
    max_bytes: int | None = None
    validation_fraction: float = 0.05
    shuffle_documents: bool = True
    num_processes: int = 0
    unit_bytes: int = 8 * 2**20
    cache_root: str = "prepared"

    def __post_init__(self) -> None:
        _choice("data.source", self.source, SOURCES)
        _choice("data.document", self.document, DOCUMENTS)
        _choice("data.encoding_errors", self.encoding_errors, ENCODING_ERRORS)
        if self.source in ("text", "jsonl", "parquet"):
            require(
                len(self.paths) > 0,
                f"data.paths is empty: data.source={self.source} needs files, globs or folders, "
                f"for example data.paths=[corpus/*.{_SUFFIX[self.source]}]",
            )
        if self.source == "python_library":
            require(
                not self.paths,
                f"data.paths={self.paths} is not read by data.source=python_library: "
                "choose data=text, jsonl or parquet",
            )
        if self.source == "hub_dataset":
            require(
                bool(self.name),
                "data.name is missing: data.source=hub_dataset needs a Hub name, a local folder "
                "or a builder such as json",
            )
        require(bool(self.field), "data.field is empty: name the field that holds the text")
        require(
            self.target_field is None or self.source in ("jsonl", "parquet", "hub_dataset"),
            f"data.target_field={self.target_field} is not read by data.source={self.source}: "
            "choose data=jsonl, parquet or hub_dataset",
        )
        require(
            self.target_field not in ("", self.field),
            f"data.target_field={self.target_field} must name another field than "
            f"data.field={self.field}",
        )
        for key in ("max_documents", "max_bytes"):
            value = getattr(self, key)
            require(
                value is None or value > 0, f"data.{key}={value}: give 1 or more, or null for all"
            )
        require(
            0 <= self.validation_fraction < 1,
            f"data.validation_fraction={self.validation_fraction}: give a share from 0 to below 1",
        )
        require(
            self.num_processes >= 0,
            f"data.num_processes={self.num_processes}: give 1 or more, or 0 for one per core",
        )
        require(self.unit_bytes > 0, f"data.unit_bytes={self.unit_bytes}: give 1 or more")
        require(bool(self.cache_root), "data.cache_root is empty: name a folder")

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The fields or columns that are read, in order."""
        return (self.field,) if self.target_field is None else (self.field, self.target_field)


@dataclass
class TokenizerConfig:
    """How text becomes token ids.

    Attributes:
        kind: `bytes` (one token per byte), `bpe` (byte-level), `unigram` (with byte fallback),
            `word` (whitespace and punctuation), `sentencepiece_bpe` (the published Reformer's),
            `roberta` (the Longformer's: byte-level BPE), `transformer_xl` (words, split as Moses
            does, numbers at `@,@` and `@.@`), or `pretrained`.
        vocab_size: Tokens of a trained vocabulary, special ones included; for words at most.
        name: Folder or Hub name, for pretrained. A folder may hold no more than a published
            `vocab.txt`, `vocab.pkl` or `vocab.bin` (Transformer-XL; a pickle is read if it holds
            plain containers alone), `spiece.model` (Reformer), or `vocab.json` and `merges.txt`.
        revision: Commit or tag of a pretrained tokenizer on the Hub.
        lowercase: Fold case first (word, transformer_xl).
        add_prefix_space: Begin each document with a space, so that its first word is like any
            other (roberta).
        splitting: How words are found (transformer_xl): `moses`, or `spaces` for text that is
            split already, as WikiText is.
        min_freq: How often a word occurs at least, else it is `<unk>` (transformer_xl).
        add_eos: End every line with `<eos>` (transformer_xl).
        add_double_eos: Put `<S>` before and after every line instead (transformer_xl).
        train_bytes: How much text of the training split a vocabulary is learnt from.
    """

    kind: str = "bytes"
    vocab_size: int = 8192
    name: str | None = None
    revision: str | None = None
    lowercase: bool = False
    add_prefix_space: bool = False
    splitting: str = "moses"
    min_freq: int = 0
    add_eos: bool = False
    add_double_eos: bool = False
    train_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        _choice("tokenizer.kind", self.kind, TOKENIZERS)
        _choice("tokenizer.splitting", self.splitting, SPLITTINGS)
        for key, kind in _ONE_KIND.items():
            require(
                not getattr(self, key) or self.kind == kind,
                f"tokenizer.{key}={getattr(self, key)} is for tokenizer={kind}, not for "
                f"tokenizer={self.kind}: leave it out",
            )
        require(self.min_freq >= 0, f"tokenizer.min_freq={self.min_freq}: give 0 or more")
        require(
            not (self.add_eos and self.add_double_eos),
            "tokenizer.add_eos=true and tokenizer.add_double_eos=true: lines end with <eos>, or "
            "stand between <S>; set one of them",
        )
        if self.kind == "roberta":
            require(
                self.vocab_size > SMALLEST_VOCABULARY + 1,
                f"tokenizer.vocab_size={self.vocab_size} is too small for tokenizer=roberta: "
                f"give more than {SMALLEST_VOCABULARY + 1} (256 bytes and 5 special tokens)",
            )
        if self.kind in ("bpe", "unigram"):
            require(
                self.vocab_size > SMALLEST_VOCABULARY,
                f"tokenizer.vocab_size={self.vocab_size} is too small for tokenizer={self.kind}: "
                f"give more than {SMALLEST_VOCABULARY} (256 bytes and {len(SPECIAL_TOKENS)} "
                "special tokens), or tokenizer=bytes",
            )
        if self.kind in ("word", "sentencepiece_bpe", "transformer_xl"):
            require(
                self.vocab_size > len(SPECIAL_TOKENS),
                f"tokenizer.vocab_size={self.vocab_size} leaves no room for words: give more than "
                f"{len(SPECIAL_TOKENS)}",
            )
        if self.kind == "pretrained":
            require(
                bool(self.name),
                "tokenizer.name is missing: tokenizer=pretrained needs a folder or a Hub name",
            )
        require(self.train_bytes > 0, f"tokenizer.train_bytes={self.train_bytes}: give 1 or more")


@dataclass
class PackingConfig:
    """How documents become rows of `sequence_length` tokens.

    Attributes:
        strategy: `best_fit` (documents whole where they fit, fewest cuts), `concatenate` (one
            running stream across rows, for contiguous training) or `one_per_row` (longer
            documents lose their end).
        align_documents: Start every document on a multiple of the architecture's chunk length.
        append_eos: End every document with the end-of-sequence token.
        shard_megabytes: Size of one Arrow file.
    """

    strategy: str = "best_fit"
    align_documents: bool = False
    append_eos: bool = True
    shard_megabytes: int = 256

    def __post_init__(self) -> None:
        _choice("packing.strategy", self.strategy, STRATEGIES)
        require(
            self.shard_megabytes > 0,
            f"packing.shard_megabytes={self.shard_megabytes}: give 1 or more",
        )


_ONE_KIND = {
    "add_prefix_space": "roberta",
    "min_freq": "transformer_xl",
    "add_eos": "transformer_xl",
    "add_double_eos": "transformer_xl",
}
_SUFFIX = {"text": "txt", "jsonl": "jsonl", "parquet": "parquet"}


def _choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise unknown_choice(key, value, choices)
