"""Prepares a corpus once: who asks again, or elsewhere at the same time, gets the same folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_pipelines import sources, tokenizers
from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.errors import DataError
from data_pipelines.files import explain_disk_errors, lock
from data_pipelines.manifest import FILE_NAME, FORMAT_VERSION, Manifest, read_manifest
from data_pipelines.packing import check_length
from data_pipelines.progress import Progress
from data_pipelines.shards import PackedSplit, damaged_file
from data_pipelines.stages import Request, run_stages
from data_pipelines.token_marks import TokenMarks, read_marks


@dataclasses.dataclass
class PreparedData:
    """A prepared corpus.

    Attributes:
        path: Its folder.
        manifest: What it holds.
    """

    path: Path
    manifest: Manifest

    def marks(self) -> TokenMarks:
        """What the text of each token says of words and sentences."""
        return read_marks(self.tokenizer_path)

    @property
    def tokenizer_path(self) -> Path:
        """Folder that `AutoTokenizer.from_pretrained` loads."""
        return self.path / "tokenizer"

    def split(self, name: str) -> PackedSplit:
        """The rows of `train` or `validation`."""
        return PackedSplit(self.path, self.manifest, name)


def fingerprint(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    packing: PackingConfig,
    sequence_length: int,
    length_multiple: int,
    seed: int,
    special: Sequence[str] = (),
) -> str:
    """A hash over everything that shapes the prepared rows.

    That is the configuration, the corpus (see `sources.identity`), a local tokenizer's files, the
    interpreter where it is the corpus, and the version of the format; not the number of
    processes or where results are kept.

    Raises:
        DataError: if a path matches nothing.
    """
    settings = dataclasses.asdict(data)
    for key in ("num_processes", "cache_root"):
        del settings[key]
    # What came later counts where it is used: what was prepared before it is found again.
    if settings["target_field"] is None:
        del settings["target_field"]
    shaping = {
        "format": FORMAT_VERSION,
        "data": settings,
        "corpus": sources.identity(data),
        "python": platform.python_version() if data.source == "python_library" else None,
        "tokenizer": [dataclasses.asdict(tokenizer), tokenizers.identity(tokenizer)],
        "packing": dataclasses.asdict(packing),
        "rows": [sequence_length, length_multiple, seed],
    }
    if special:
        shaping["special"] = list(special)
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    packing: PackingConfig,
    *,
    sequence_length: int,
    length_multiple: int = 1,
    seed: int = 0,
    special: Sequence[str] = (),
    progress: bool = True,
) -> PreparedData:
    """Prepares a corpus, or finds it prepared.

    The result lies in `<data.cache_root>/<data.source>-<fingerprint>/`. A preparation that was
    interrupted goes on where it was; one that runs in another process is waited for.

    Args:
        data: Where documents come from.
        tokenizer: How they become tokens.
        packing: How tokens become rows.
        sequence_length: Tokens in a row.
        length_multiple: What the architecture needs `sequence_length` to be a multiple of; where
            `packing.align_documents` is set, documents start at multiples of it.
        seed: Shuffles documents; the split does not depend on it.
        special: Roles of special tokens that the tokenizer has to have beside those it always
            has; see `special_tokens.py`.
        progress: Whether to tell on stderr how it goes.

    Raises:
        DataError: if the configuration, the data or the disk does not allow it.
    """
    check_length(sequence_length, length_multiple)
    if data.target_field is not None and not packing.append_eos:
        raise DataError(
            f"data.target_field={data.target_field} needs packing.append_eos=true: that token "
            "parts the two texts, and ends the second"
        )
    if data.target_field is not None and (tokenizer.add_eos or tokenizer.add_double_eos):
        raise DataError(
            f"data.target_field={data.target_field}: lines that end with <eos> cannot be told from "
            "the end of the first text: leave out tokenizer.add_eos and tokenizer.add_double_eos"
        )
    identity = fingerprint(
        data, tokenizer, packing, sequence_length, length_multiple, seed, special
    )
    path = Path(data.cache_root).expanduser() / f"{data.source}-{identity[:16]}"
    if path.exists():
        return open_prepared(path)
    staging = path.with_suffix(".staging")
    with Progress(progress) as told, explain_disk_errors(data.cache_root):
        staging.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for another process that prepares {path}"
        with lock(staging / "lock", when_busy=lambda: told.say(waiting)):
            if not path.exists():
                told.say(f"preparing {path}")
                request = Request(
                    data,
                    tokenizer,
                    packing,
                    sequence_length,
                    length_multiple,
                    seed,
                    identity,
                    tuple(special),
                )
                run_stages(request, staging, told, path)
            shutil.rmtree(staging, ignore_errors=True)
    return open_prepared(path)


def open_prepared(path: Path) -> PreparedData:
    """Opens what `prepare` made.

    Raises:
        DataError: if there is nothing, or a file of it is missing or damaged.
    """
    if not (path / FILE_NAME).exists():
        raise DataError(f"{path} is not a prepared corpus: it has no {FILE_NAME}; run lsp prepare")
    manifest = read_manifest(path)
    if manifest["format_version"] != FORMAT_VERSION:
        raise DataError(
            f"{path} has format {manifest['format_version']}, this version reads "
            f"{FORMAT_VERSION}: delete the folder and prepare again"
        )
    damaged = damaged_file(path, manifest)
    if damaged:
        raise DataError(
            f"{path}: {damaged} is missing or damaged: delete the folder and prepare again"
        )
    return PreparedData(path, manifest)
