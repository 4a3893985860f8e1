"""Reading what others published: a local folder or a Hub repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipelines.published_tokenizers import PICKLES
from data_pipelines.tokenizer_builders import byte_characters
from data_pipelines.tokenizers import save_published
from lsp.core.errors import UserError, require
from lsp.hub.headless import is_headless, with_fresh_head
from lsp.hub.published import (
    config_from_published,
    objective_of,
    read_form,
    read_published_config,
)
from lsp.hub.weights import read_published_weights

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", *PICKLES)
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json",
    "vocab.txt", *PICKLES,
)  # fmt: skip
BYTES_VOCABULARY, BYTES_OFFSET = 258, 2


@dataclass(frozen=True)
class PublishedModel:
    """A published checkpoint under our names.

    Attributes:
        folder: Where its files lie.
        architecture: Its name.
        config: Of the architecture.
        objective: What it was trained for, or can go on with.
        weights: fp32, by our names.
        ignored: Keys of its `config.json` that its model does not read.
        fresh: Published names of weights that it does not have, and that were drawn.
        left_over: Names of weights that it has, and that what it goes on with does not need.
        made_for: Tokens in a row that it says it was made for, where it can read more; 0 for none.
    """

    folder: Path
    architecture: str
    config: Any
    objective: str
    weights: dict[str, torch.Tensor]
    ignored: list[str]
    fresh: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    made_for: int = 0


def locate(source: str) -> Path:
    """The folder of a published checkpoint: local, or fetched from the Hub.

    Raises:
        UserError: There is no such folder and no such repository, or the Hub is out of reach.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        return local
    require(not local.exists(), f"from={source} is a file: name the folder that holds it")
    parts = source.split("/")
    if len(parts) > 2 or source.startswith((".", "~", "/")) or not all(parts):
        raise UserError(
            f"from={source} is no folder, and not the name of a Hub repository, which is like "
            "google/reformer-enwik8"
        )
    return _fetch(source)


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*SMALL_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*SMALL_FILES, "*.bin"]))
    except Exception as error:  # whatever reaching the Hub can raise, from three libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"from={name} is no local folder, and cannot be fetched from the Hub: {reason[:200]}"
        ) from error
    return folder


def read_published(folder: Path) -> PublishedModel:
    """Reads the config and weights of a published checkpoint.

    Where it has another head than a language model's, or none, that is fresh.

    Raises:
        UserError: A file is missing or damaged, the architecture is not known here, or the weights
            are not those that the config describes.
    """
    published = read_published_config(folder)
    config, ignored = config_from_published(published)
    form = read_form(published)
    found = read_published_weights(folder)
    fresh: tuple[str, ...] = ()
    if is_headless(found, config):
        weights, fresh = with_fresh_head(found, config)
    else:
        weights = form.from_published(found, config)
    return PublishedModel(
        folder=folder,
        architecture=form.architecture,
        config=config,
        objective=objective_of(config),
        weights={name: weight.float().contiguous() for name, weight in weights.items()},
        ignored=ignored,
        fresh=fresh,
    )


def import_tokenizer(published: PublishedModel, out: Path) -> str | None:
    """Writes the tokenizer of a published checkpoint, so that `AutoTokenizer` loads it.

    Args:
        published: The checkpoint.
        out: Folder that is created, if there is a tokenizer.

    Returns:
        What was written, in words; None if the checkpoint has no tokenizer.

    Raises:
        UserError: The tokenizer cannot be loaded, or has tokens that the model does not know.
    """
    vocab_size = int(published.config.vocab_size)
    if not any((published.folder / name).is_file() for name in TOKENIZER_FILES):
        if vocab_size != BYTES_VOCABULARY:
            return None
        _byte_tokenizer().save_pretrained(out)
        return f"bytes, byte 0 as token {BYTES_OFFSET}, as published for {vocab_size} tokens"
    from transformers import AutoTokenizer, PreTrainedConfig

    size = save_published(published.folder, out)
    if size is not None:
        _check_fits(published, size)
        return f"{size:,} tokens"
    # Where the folder has model code, transformers would ask whether to run it, for its config.
    own = "auto_map" in read_published_config(published.folder)
    config = PreTrainedConfig() if own else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            published.folder, config=config, trust_remote_code=False
        )
    except Exception as error:  # whatever loading someone else's files can raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{published.folder}: its tokenizer cannot be loaded: {reason[:200]}"
        ) from error
    _check_fits(published, len(tokenizer))
    # A model that was made longer comes with the tokenizer of the short one, which would cut texts.
    longest = int(published.config.max_positions)
    tokenizer.model_max_length = max(tokenizer.model_max_length, longest)
    tokenizer.save_pretrained(out)
    return f"{len(tokenizer):,} tokens"


def _check_fits(published: PublishedModel, size: int) -> None:
    vocab_size = int(published.config.vocab_size)
    require(
        size <= vocab_size,
        f"{published.folder}: its tokenizer has {size} tokens, and its model only "
        f"vocab_size={vocab_size}",
    )


def _byte_tokenizer() -> Any:
    """The byte vocabulary that the published enwik8 model was trained with, as a tokenizer.

    It comes without files: its authors add 2 to every byte, and keep 0 for padding.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>"]
    vocabulary = {token: number for number, token in enumerate([*special, *byte_characters()])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        eos_token=special[1],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
