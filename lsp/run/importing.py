"""`lsp import`: a published checkpoint becomes a run at step 0."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError

from data_pipelines.config import TokenizerConfig
from lsp.checkpointing.files import write_tensors, write_text
from lsp.checkpointing.snapshot import TrainState
from lsp.checkpointing.store import CheckpointStore, write_state
from lsp.core.errors import UserError, require, unknown_choice
from lsp.core.exit_codes import DONE
from lsp.core.versions import versions
from lsp.data.config import ObjectiveConfig
from lsp.hub.hub_importing import read_hub
from lsp.hub.importing import PublishedModel, import_tokenizer, locate, read_published
from lsp.hub.lengthening import read_lengthened
from lsp.hub.published import FORMS, read_published_config
from lsp.models import longformer_config, registry, roberta_conversion
from lsp.models.hub.table import ROWS
from lsp.models.transformer_xl_config import UNLIMITED
from lsp.run.compose import load_train_config, save_yaml
from lsp.run.config import LENGTHENING, ImportConfig, RunConfig
from lsp.run.parts import build_model

SHOWN = 8
"""Names of weights that are told, at most."""


def run_import(config: ImportConfig) -> int:
    """Makes a run from a published checkpoint; returns the exit code.

    Raises:
        UserError: The checkpoint cannot be read, or the folder of the run is taken.
    """
    out = config.folder
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} exists: name another folder, or delete it first")
    published = _read(config)
    run = run_config(published, out)
    tokenizer = _write_run(run, published, out, str(config.source))
    with torch.device("meta"):  # what is tied has two names, and is one parameter
        parameters = sum(p.numel() for p in build_model(run).parameters())
    print(f"imported {config.source} into {out}")
    hub = published.architecture == "hub"
    kind = published.config.model_type if hub else published.architecture
    print(f"  {kind}, {parameters:,} parameters, objective={published.objective}")
    print(f"  sequence_length={run.sequence_length:,}")
    print(f"  tokenizer: {tokenizer or f'none; put its files into {out}/tokenizer'}")
    if published.fresh:
        why = "not in the checkpoint" if hub else "without a language model's head"
        print(f"  {why}, so these are fresh: {_named(published.fresh)}")
    if published.left_over:
        print(
            f"  in the checkpoint, and of no use for objective={published.objective}: "
            f"{_named(published.left_over)}"
        )
    if published.ignored:
        print(f"  keys of config.json that the model does not read: {', '.join(published.ignored)}")
    packing = "" if run.packing.strategy != "one_per_row" else " packing=one_per_row"
    print(
        f"next:\n  lsp train run_name={run.run_name} checkpoint.root={run.checkpoint.root} "
        f"architecture={published.architecture} "
        f"sequence_length={run.sequence_length} tokens_per_step={run.tokens_per_step} "
        f"objective={published.objective}{packing}"
    )
    if published.objective == "causal" and tokenizer:
        print(f'  lsp generate run={out} prompt="The "')
    return DONE


def _named(weights: tuple[str, ...]) -> str:
    more = f" and {len(weights) - SHOWN} more" if len(weights) > SHOWN else ""
    return ", ".join(weights[:SHOWN]) + more


def _read(config: ImportConfig) -> PublishedModel:
    folder = locate(config.source)
    content = read_published_config(folder)
    kind = str(content.get("model_type"))
    architecture = config.architecture or _architecture_of(kind)
    if architecture == longformer_config.MODEL_TYPE and kind == roberta_conversion.MODEL_TYPE:
        require(
            config.sequence_length is not None,
            f"{config.source} is a {kind}, which can be made into a longer Longformer: use "
            "architecture=longformer sequence_length=4096, or leave both out for a RoBERTa",
        )
        assert config.sequence_length is not None
        window = config.attention_window
        if window is None:
            window = roberta_conversion.ATTENTION_WINDOW
        return read_lengthened(folder, config.sequence_length, window)
    for key in LENGTHENING:
        value = getattr(config, key)
        require(
            value is None,
            f"{key}={value} is for making a Longformer of a RoBERTa, such as "
            f"FacebookAI/roberta-base, but {config.source} is a {kind}: leave it out, or name a "
            "RoBERTa",
        )
    if architecture == "hub":
        return read_hub(folder, content, config.objective, RunConfig.sequence_length)
    right = _architecture_of(kind)
    require(
        right == architecture,
        f"architecture={architecture}, but {config.source} is a {kind}: use architecture={right}, "
        "or leave it out",
    )
    require(
        config.objective is None,
        f"objective={config.objective} is for architecture=hub, but {config.source} is a {kind}, "
        "which goes on with what it was made for: leave it out",
    )
    return read_published(folder)


def _architecture_of(kind: str) -> str:
    """The architecture here for a published `model_type`: one written here, or the adapter."""
    native = {form.model_type: form.architecture for form in FORMS}
    if kind not in native and kind not in ROWS:
        raise unknown_choice("model_type", kind, {*native, *ROWS})
    return native.get(kind, "hub")


def run_config(published: PublishedModel, out: Path) -> RunConfig:
    """The configuration of a run that goes on from a published checkpoint.

    Everything that the checkpoint does not say is as `lsp train` has it.

    Raises:
        UserError: The folder cannot be a run's, or the config cannot be trained with.
    """
    config = load_train_config(
        [f"architecture={published.architecture}", f"checkpoint.root={_quoted(out.parent)}"]
    )
    length = int(published.config.max_positions)
    if length >= UNLIMITED:
        length = min(config.sequence_length, published.made_for or config.sequence_length)
    config.run_name = out.name
    config.sequence_length = length
    config.tokens_per_step = -(-config.tokens_per_step // length) * length
    config.objective = ObjectiveConfig(name=published.objective)
    if not registry.get(published.architecture).segments(published.config):
        config.packing.strategy = "one_per_row"
    config.tokenizer = TokenizerConfig(kind="pretrained", name=str(out / "tokenizer"))
    config.architecture = registry.get(published.architecture).resolve(
        published.config,
        vocab_size=published.config.vocab_size,
        sequence_length=length,
        objective=published.objective,
    )
    config.__post_init__()  # the name of the run came after the first check
    return config


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _write_run(run: RunConfig, published: PublishedModel, out: Path, source: str) -> str | None:
    """Writes the folder of the run aside and gives it its name; returns what tokenizer it has."""
    aside = out.parent / f".{out.name}.importing"
    shutil.rmtree(aside, ignore_errors=True)  # of an import that was killed
    try:
        aside.mkdir(parents=True)
        tokenizer = import_tokenizer(published, aside / "tokenizer")
        store, config_yaml = CheckpointStore(aside), save_yaml(run)
        folder = store.begin(0)
        write_tensors(folder, "model", published.weights.items())
        state = asdict(TrainState(imported_from=source))
        write_state(folder, state | {"world_size": 1, "versions": versions()})
        write_text(folder / "config.yaml", config_yaml)
        store.commit(folder, 0)
        write_text(aside / "config.yaml", config_yaml)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"out={out} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return tokenizer
