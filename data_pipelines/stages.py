"""The stages of a preparation, in order, resumable, over several processes.

    plan units -> tokenizer -> units of tokens -> splits -> packed rows -> manifest -> rename

Each stage leaves its result in a staging folder, under a final name only when it is complete. So
whatever ends a preparation, the next one goes on from there, and nothing in the result depends on
how many processes worked or how often they were interrupted.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipelines import pool, sources
from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.corpus import Corpus
from data_pipelines.errors import DataError
from data_pipelines.files import commit, new_folder, write_json
from data_pipelines.manifest import FILE_NAME, Manifest, SplitManifest
from data_pipelines.packing import pack
from data_pipelines.progress import Progress
from data_pipelines.result import build_manifest, split_manifest
from data_pipelines.shards import Layout, write_split
from data_pipelines.sources import TRAIN, VALIDATION, Unit
from data_pipelines.tokenizers import Encoder, load_encoder, save_tokenizer, token_type
from data_pipelines.units import encode_unit, load_unit, sample_unit

_SAMPLED_UNITS = 256
SPLITS = {"train": TRAIN, "validation": VALIDATION}


@dataclass(frozen=True)
class Request:
    """What is to be prepared."""

    data: DataConfig
    tokenizer: TokenizerConfig
    packing: PackingConfig
    sequence_length: int
    length_multiple: int
    seed: int
    fingerprint: str
    special: tuple[str, ...] = ()


def run_stages(request: Request, staging: Path, told: Progress, path: Path) -> None:
    """Does what is still to do; `path` appears when all is done.

    Args:
        request: What is to be prepared.
        staging: Folder of this preparation, with what an earlier attempt has left there.
        told: Says how it goes.
        path: The final folder.
    """
    units_folder = staging / "units"
    units_folder.mkdir(exist_ok=True)
    for left in [*staging.glob("*.tmp"), *units_folder.glob("*.tmp")]:
        shutil.rmtree(left, ignore_errors=True)
    units = sources.plan(request.data)
    if not units:
        raise DataError(f"{_corpus_name(request.data)} has no documents: it is empty")
    tokenizer_folder = _make_tokenizer(request, units, staging, told)
    encoder = load_encoder(tokenizer_folder)
    tokenizing = _Tokenizing(request, encoder, tokenizer_folder, units_folder, told)
    units = tokenizing.run(units)
    corpus = tokenizing.fill_splits(units)

    packed = staging / "packed"
    manifest = _pack(request, corpus, units, encoder, packed, told)
    shutil.copytree(tokenizer_folder, packed / "tokenizer", dirs_exist_ok=True)
    write_json(packed / FILE_NAME, manifest)
    commit(packed, path)


def _make_tokenizer(request: Request, units: list[Unit], staging: Path, told: Progress) -> Path:
    folder = staging / "tokenizer"
    if folder.exists():
        return folder
    config, data = request.tokenizer, request.data
    limited = units[0].max_documents is not None or units[0].max_bytes is not None
    # Spread over the corpus, but not over every shard of a stream: each costs a connection.
    chosen = units[:1] if limited else units[:: -(-len(units) // _SAMPLED_UNITS)]

    def texts() -> Iterator[str]:
        for unit in chosen:
            yield from sample_unit(unit, data, -(-config.train_bytes // len(chosen)))

    if config.kind in ("bpe", "unigram", "word"):
        told.say(f"learning a {config.kind} vocabulary of {config.vocab_size}")
    with new_folder(folder) as aside:
        save_tokenizer(config, aside, texts, request.special)
    return folder


@dataclass
class _Tokenizing:
    """The stage that takes the time."""

    request: Request
    encoder: Encoder
    tokenizer_folder: Path
    folder: Path
    told: Progress

    def run(self, units: list[Unit]) -> list[Unit]:
        """Tokenizes the units that are missing; returns those that the corpus consists of."""
        data = self.request.data
        taken = _Taken(units, data, self.folder)
        missing = []
        for unit in units:
            if not (self.folder / unit.name).exists():
                missing.append(unit)
            elif not taken.add(unit):
                missing = []
                break
        total = sum(unit.size for unit in units)
        there = total - sum(unit.size for unit in missing)
        if there and missing:
            self.told.say(f"{len(units) - len(missing)} of {len(units)} units are already there")
        self.told.stage("tokenizing", "MB", total or None, there)
        processes = min(data.num_processes or _cores(), len(missing))
        if processes > 1:
            report, packing = self.told.advance, self.request.packing
            pool.run(
                missing,
                data,
                packing,
                self.tokenizer_folder,
                self.folder,
                processes,
                report,
                taken.add,
            )
        else:
            for unit in missing:
                self._encode(unit)
                if not taken.add(unit):
                    break
        return self._limit(taken)

    def fill_splits(self, units: list[Unit]) -> Corpus:
        """The corpus, with at least one document in each split that is asked for.

        Few documents may all fall into one split by their hash. Then the one with the lowest hash
        is moved to validation (or that with the highest to training).
        """
        data = self.request.data
        corpus = self._corpus(units)
        if len(corpus) == 0:
            raise DataError(
                f"{_corpus_name(data)} has no documents: "
                f"{sum(s.empty for s in corpus.statistics)} are empty, "
                f"{sum(s.skipped for s in corpus.statistics)} skipped for invalid UTF-8"
            )
        present = set(corpus.splits.tolist())
        wanted = {TRAIN, VALIDATION} if data.validation_fraction > 0 else {TRAIN}
        if wanted <= present:
            return corpus
        keys = set(corpus.keys.tolist())
        if len(keys) == 1:
            raise DataError(
                f"data.validation_fraction={data.validation_fraction} needs two different "
                f"documents, {_corpus_name(data)} has one: set it to 0, or divide the text "
                "(data.document=line or paragraph)"
            )
        split = VALIDATION if TRAIN in present else TRAIN
        key = min(keys) if split == VALIDATION else max(keys)
        holders = set(corpus.units[corpus.keys == key].tolist())
        moved = [
            dataclasses.replace(unit, moved={str(key): split})
            if unit.number in holders or _continues(unit)
            else unit
            for unit in units
        ]
        for unit in moved:
            self._encode(unit)
        return self._corpus(moved)

    def _encode(self, unit: Unit) -> None:
        request = self.request
        encode_unit(
            unit, request.data, request.packing, self.encoder, self.folder, self.told.advance
        )

    def _limit(self, taken: _Taken) -> list[Unit]:
        """The units up to the limit; the one that crosses it is done again as far as it goes."""
        if not taken.reached:
            return taken.units
        last = dataclasses.replace(
            taken.units[taken.count - 1], max_documents=taken.documents, max_bytes=taken.bytes
        )
        self._encode(last)
        return [*taken.units[: taken.count - 1], last]

    def _corpus(self, units: list[Unit]) -> Corpus:
        return Corpus(units, self.folder, token_type(self.encoder.vocab_size))


class _Taken:
    """Counts documents and bytes of the finished units in their order, against the limits.

    Attributes:
        count: Finished units without a gap.
        reached: Whether a limit is reached within them.
        documents: What was left of the limit before the last of them.
        bytes: The same.
    """

    def __init__(self, units: list[Unit], data: DataConfig, folder: Path) -> None:
        self.units = units
        self._folder = folder
        self._finished: set[int] = set()
        self.count = 0
        self.reached = False
        self.documents = units[0].max_documents
        self.bytes = units[0].max_bytes

    def add(self, unit: Unit) -> bool:
        """Notes a finished unit; returns whether more are needed."""
        self._finished.add(unit.number)
        if self.documents is None and self.bytes is None:
            return True
        while not self.reached and self.count in self._finished:
            table, _ = load_unit(self.units[self.count], self._folder)
            documents, size = int(table["opens"].sum()), int(table["bytes"].sum())
            self.count += 1
            self.reached = _at_least(documents, self.documents) or _at_least(size, self.bytes)
            if not self.reached:
                self.documents = None if self.documents is None else self.documents - documents
                self.bytes = None if self.bytes is None else self.bytes - size
        return not self.reached


def _at_least(value: int, limit: int | None) -> bool:
    return limit is not None and value >= limit


def _continues(unit: Unit) -> bool:
    """Whether the unit begins in the middle of a document, which may be the one that moves."""
    return unit.spans[0].start > unit.spans[0].first and unit.spans[0].last > 0


def _pack(
    request: Request,
    corpus: Corpus,
    units: list[Unit],
    encoder: Encoder,
    packed: Path,
    told: Progress,
) -> Manifest:
    """Writes both splits under `packed` and returns the manifest."""
    layout = Layout.of(
        request.sequence_length,
        token_type(encoder.vocab_size),
        encoder.special_ids.get("pad", 0),
        request.packing.shard_megabytes,
    )
    multiple = request.length_multiple if request.packing.align_documents else 1
    splits: dict[str, SplitManifest] = {}
    for name, split in SPLITS.items():
        order = corpus.order(split, request.seed, request.data.shuffle_documents)
        lengths = (int(corpus.lengths[document]) for document in order)
        if request.data.target_field is not None and request.packing.strategy == "best_fit":
            # What is behind the end of a row would begin another, and be read as a first text.
            lengths = (min(length, request.sequence_length) for length in lengths)
        rows = pack(lengths, request.packing.strategy, request.sequence_length, multiple)
        told.stage(f"packing {name}", "rows", None)
        written, files = write_split(rows, corpus, order, layout, packed / name, told.advance)
        eos = request.packing.append_eos
        splits[name] = split_manifest(corpus, split, order, written, files, layout, eos)
    labels = [unit.label for unit in units]
    configs = {
        "data": dataclasses.asdict(request.data),
        "tokenizer": dataclasses.asdict(request.tokenizer),
        "packing": dataclasses.asdict(request.packing),
    }
    return build_manifest(
        corpus,
        splits,
        layout,
        labels,
        fingerprint=request.fingerprint,
        length_multiple=request.length_multiple,
        seed=request.seed,
        vocab_size=encoder.vocab_size,
        special_ids=encoder.special_ids,
        configs=configs,
    )


def _corpus_name(data: DataConfig) -> str:
    if data.source == "hub_dataset":
        return f"data.name={data.name}"
    return f"data.paths={data.paths}" if data.paths else f"data.source={data.source}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
