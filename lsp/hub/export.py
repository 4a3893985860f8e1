"""Export or fail: a folder that plain `transformers` loads, proven to be the trained model."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from data_pipelines.tokenizers import SETTINGS
from lsp.core.errors import UserError, require
from lsp.core.versions import versions
from lsp.hub.card import Evidence, model_card
from lsp.hub.comparison import HASH_SEED, Case, Comparison, compare
from lsp.hub.form import PublishedForm
from lsp.hub.published import CONFIG_FILE, form_of
from lsp.hub.weights import cast, write_weights
from lsp.models.interface import LanguageModel

VERIFICATION = "verification.json"
"""Evidence in an export for programs; its presence marks a folder as an export of ours."""

RESERVED = (CONFIG_FILE, "generation_config.json", "README.md", VERIFICATION, SETTINGS)
"""Names in a tokenizer's folder that are not the tokenizer's."""
TOKENIZER_CONFIG = "tokenizer_config.json"


def export_model(
    model: LanguageModel,
    *,
    build: Callable[[Any], LanguageModel],
    sequence_length: int,
    tokenizer_path: Path | None,
    out: Path,
    evidence: Evidence,
    dtype: str = "fp32",
    max_shard_size: int = 5 * 10**9,
    overwrite: bool = False,
    verify_length: int = 0,
) -> Comparison:
    """Writes a Hub-compatible folder, compares it in a fresh process, and only then names it.

    Everything is written to a hidden folder beside `out`, which goes away if anything fails.

    Args:
        model: The trained model, with its completed config.
        build: Makes a model of the architecture from a config.
        sequence_length: Length it was trained at.
        tokenizer_path: Folder with the files of the run's tokenizer; None where it has none.
        out: Folder that appears.
        evidence: For the model card.
        dtype: Number format of the weights: `fp32`, `bf16` or `fp16`.
        max_shard_size: Largest file of weights in bytes.
        overwrite: Whether an earlier export in `out` is replaced.
        verify_length: Length of the whole-length comparison; 0 for `sequence_length`.

    Returns:
        What the comparison found.

    Raises:
        ExportMismatchError: The folder is not the trained model.
        UserError: `out` is taken or cannot be written, or the model cannot be expressed.
    """
    check_out(out, overwrite=overwrite)
    require(
        0 <= verify_length <= sequence_length,
        f"verify_length={verify_length} must be 1 to {sequence_length}, or 0 for the whole length",
    )
    form = form_of(model.config)
    weights = cast(model.state_dict(), dtype)
    published = form.to_published(weights, model.config)
    reference, hash_seed = _reference(model, build, weights)
    staging = out.parent / f".{out.name}.exporting"
    shutil.rmtree(staging, ignore_errors=True)  # of an export that was killed
    try:
        staging.mkdir(parents=True)
        config = write_model(staging, form, model.config, published, max_shard_size)
        if tokenizer_path is not None:
            copy_tokenizer(tokenizer_path, staging)
        comparison = compare(
            staging,
            reference,
            form,
            published,
            cases=comparison_cases(form, model.config, verify_length or sequence_length),
            config=config,
            hash_seed=hash_seed,
            tokenizer_path=tokenizer_path,
        )
        card = model_card(evidence, form, comparison, config=model.config, dtype=dtype)
        (staging / "README.md").write_text(card, encoding="utf-8")
        _write_json(staging / VERIFICATION, _record(evidence, comparison))
        _put_in_place(staging, out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"out={out} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return comparison


def write_model(
    folder: Path,
    form: PublishedForm,
    config: Any,
    published: Mapping[str, torch.Tensor],
    max_shard_size: int = 5 * 10**9,
) -> dict[str, Any]:
    """Writes what `from_pretrained` reads: weights, configuration, code.

    Args:
        folder: Existing folder.
        form: How `transformers` knows the architecture.
        config: Of the model.
        published: Its weights under the published names.
        max_shard_size: Largest file of weights in bytes.

    Returns:
        What `config.json` says of the model.
    """
    # What is tied is one weight, and a reader ties it again.
    tied = set(form.tied(config))
    kept = {name: weight for name, weight in published.items() if name not in tied}
    write_weights(form.stored(kept, config), folder, max_shard_size)
    described = form.published_config(config, form)
    _write_json(folder / CONFIG_FILE, described | _written_by())
    for file in form.code:
        shutil.copyfile(file, folder / file.name)
    if form.generates:
        _write_json(folder / "generation_config.json", _generation_config(config, form))
    return described


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuses to write where something lies that is not an earlier export to be replaced.

    Raises:
        UserError: `out` is a file, or a folder with content.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    ours = (out / VERIFICATION).is_file()
    if ours and overwrite:
        return
    hint = "overwrite=true replaces it, or name another folder" if ours else "name another folder"
    kind = "an earlier export" if ours else "not an export"
    raise UserError(f"out={out} exists and is {kind}: {hint}")


def comparison_cases(form: PublishedForm, config: Any, length: int) -> list[Case]:
    """A short row that every kind of attention sees whole, and a row of the training length."""
    if form.incomparable:
        return []
    short = form.short_length(config, length)
    return [Case("short", short, "float32"), Case("whole length", length, "float64")]


def copy_tokenizer(tokenizer_path: Path, folder: Path) -> None:
    """Copies the files of a tokenizer, and nothing that is a file of the model, or code.

    Who trusts the code of an export, as some have to be opened, is to trust no other with it: a
    published tokenizer may name classes of its own, in files or in somebody's repository.

    Raises:
        UserError: There is no tokenizer.
    """
    files = [path for path in sorted(tokenizer_path.glob("*")) if path.is_file()]
    if not files:
        raise UserError(f"{tokenizer_path} has no tokenizer files: the run is incomplete")
    for path in files:
        if path.name in RESERVED or path.name.startswith(".") or path.suffix == ".py":
            continue
        shutil.copyfile(path, folder / path.name)
    file = folder / TOKENIZER_CONFIG
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if settings.pop("auto_map", None) is not None:
        _write_json(file, settings)


def _reference(
    model: LanguageModel,
    build: Callable[[Any], LanguageModel],
    weights: Mapping[str, torch.Tensor],
) -> tuple[LanguageModel, int | None]:
    """The trained model with rounded weights, and rotations that two programs can share."""
    config = copy.deepcopy(model.config)
    hash_seed = None
    if "lsh" in getattr(config, "attn_layers", ()):
        hash_seed = HASH_SEED if config.hash_seed is None else config.hash_seed
        config.hash_seed = hash_seed
    reference = build(config)
    reference.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return reference.eval(), hash_seed


def _generation_config(config: Any, form: PublishedForm) -> dict[str, Any]:
    return {
        **form.special_ids(config),
        "do_sample": True,
        "use_cache": getattr(config, "use_cache", True),
        **_written_by(),
    }


def _written_by() -> dict[str, str]:
    return {"transformers_version": version("transformers")}


def _record(evidence: Evidence, comparison: Comparison) -> dict[str, Any]:
    return {
        "run_name": evidence.run_name,
        "step": evidence.step,
        "tokens": evidence.tokens,
        "data_fingerprint": evidence.data_fingerprint,
        "comparison": asdict(comparison),
        "exported_with": versions(),
    }


def _put_in_place(staging: Path, out: Path) -> None:
    """Gives the finished folder its name; what it replaces goes only after that."""
    old = out.parent / f".{out.name}.replaced"
    if out.exists():
        out.rename(old)
    staging.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
