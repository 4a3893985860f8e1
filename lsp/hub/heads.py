"""Published folders of models with heads: opening them, and writing them for `transformers`."""

from __future__ import annotations

import copy
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lsp.core.errors import UserError, require
from lsp.hub.comparison import COMPARED_POSITIONS, TOLERANCE, ExportMismatchError
from lsp.hub.importing import locate
from lsp.hub.published import CONFIG_FILE, config_from_published, form_of, read_published_config
from lsp.hub.weights import cast, read_published_weights, write_weights
from lsp.models import registry
from lsp.models.heads.labels import Labels
from lsp.models.heads.models import HeadedModel
from lsp.models.heads.registry import build_head, head_of
from lsp.models.heads.weights import from_published, to_published
from lsp.models.memory import MemoryConfig


def open_head(
    source: str | Path,
    task: str,
    *,
    labels: dict[str, Any] | None = None,
    memory: MemoryConfig | None = None,
    fresh_head: bool = False,
    changes: dict[str, Any] | None = None,
) -> HeadedModel:
    """A published model with a head: with its own, or where it has none, with a fresh one.

    Args:
        source: Folder with `config.json` and weights, or name of a Hub repository.
        task: Name of the head.
        labels: `num_labels`, `problem_type`, `id2label`, where they are not to be the folder's.
        memory: How memory is traded for time.
        fresh_head: Whether to begin with a fresh head although there is one.
        changes: Fields of the config that are not to be the folder's.

    Raises:
        UserError: There is no such model, or it cannot have this head.
    """
    folder = locate(str(source))
    published = read_published_config(folder)
    config, _ = config_from_published(published)
    model = build_head(
        changed(config, changes or {}),
        task,
        labels=labels_of(published, task, labels or {}),
        memory=memory,
    )
    state, model.fresh = from_published(
        read_published_weights(folder), model, fresh_head=fresh_head
    )
    model.load_state_dict(state)
    return model.eval()


def labels_of(published: dict[str, Any], task: str, given: dict[str, Any]) -> Labels:
    """What a head tells apart, by a `config.json` and what the user says."""
    if task == "question_answering":
        # Its two scores are no labels, whatever a model was trained for before.
        published = {}
    return Labels.of(published, **given)


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """A config with other values.

    Raises:
        UserError: It has no such field, or the value cannot work.
    """
    known = vars(config)
    for key in changes:
        if key not in known:
            raise UserError(
                f"{key} is not an option of {registry.name_of(config)}; "
                f"it has {', '.join(sorted(known))}"
            )
    new = type(config)(**(known | changes))
    new.validate()
    return new


def save_head(model: HeadedModel, out: str | Path, tokenizer: Any = None) -> Path:
    """Writes a folder that `transformers` opens with its class for the task.

    The folder is opened again with `transformers` and compared before it gets its name.

    Args:
        model: Trained.
        out: Folder that appears.
        tokenizer: What `AutoTokenizer.from_pretrained` gave; None writes none.

    Returns:
        `out`.

    Raises:
        ExportMismatchError: What `transformers` reads is not the model.
        UserError: `out` is taken, or the model has no published form.
    """
    out = Path(out)
    require(
        not out.exists() or (out.is_dir() and not any(out.iterdir())),
        f"out={out} exists: name another folder",
    )
    form = form_of(model.config)
    head = head_of(registry.name_of(model.config), model.task)
    auto_class, model_class = head.auto_class, head.model_class
    if form.auto_map:
        require(
            auto_class in form.auto_map,
            f"a {form.title} brings its own code along, which has no class for {model.task}: only "
            "lsp can read it",
        )
        model_class = form.auto_map[auto_class].rpartition(".")[2]
    config = form.published_config(model.config, form) | {"architectures": [model_class]}
    config |= model.labels.to_dict() | {"transformers_version": version("transformers")}
    if model.keeps_lm_head:
        published = form.to_published(model.backbone.state_dict(), model.config)
        tied = set(form.tied(model.config))
    else:
        published, tied = to_published(model), set()
    weights = cast(published, "fp32")
    staging = out.parent / f".{out.name}.saving"
    shutil.rmtree(staging, ignore_errors=True)  # of a save that was killed
    try:
        staging.mkdir(parents=True)
        kept = {name: weight for name, weight in weights.items() if name not in tied}
        write_weights(kept, staging, 5 * 10**9)
        text = json.dumps(config, indent=2, sort_keys=True)
        (staging / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        for file in form.code:
            shutil.copyfile(file, staging / file.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        _compare(model, staging, auto_class, model_class, trust=bool(form.auto_map))
        if out.exists():
            out.rmdir()
        staging.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"out={out} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


@torch.no_grad()
def _compare(
    model: HeadedModel, folder: Path, auto_class: str, model_class: str, *, trust: bool
) -> None:
    """Opens the folder with `transformers` and compares what both models answer to a row.

    Raises:
        ExportMismatchError: They differ, or something was not found.
    """
    import transformers

    kind = getattr(transformers, auto_class)
    theirs, info = kind.from_pretrained(folder, output_loading_info=True, trust_remote_code=trust)
    found = [f"{key}: {sorted(map(str, names))[0]}" for key, names in info.items() if names]
    if type(theirs).__name__ != model_class:
        found.append(f"{auto_class} gave {type(theirs).__name__}")
    if found:
        raise ExportMismatchError(f"transformers does not find the model: {found[0]}")
    config = model.config
    # A row that all attention sees whole: nothing is hashed, so nothing is random.
    length = min(COMPARED_POSITIONS, config.seen_whole, config.max_positions)
    row = torch.arange(1, length + 1) % config.vocab_size
    if config.pad_token_id is not None:
        row[row == config.pad_token_id] = (config.pad_token_id + 1) % config.vocab_size
    inputs = {"input_ids": row[None, None] if model.task == "multiple_choice" else row[None]}
    if registry.name_of(config) == "longformer":
        inputs["global_attention_mask"] = (
            (torch.arange(length) == 0).long().expand_as(inputs["input_ids"])
        )
    weight, training = next(model.parameters()), model.training
    # What was written is fp32, and so is the arithmetic of both.
    ours = model if weight.dtype == torch.float32 else copy.deepcopy(model).float()
    try:
        out = ours.eval()(**{name: value.to(weight.device) for name, value in inputs.items()})
    finally:
        model.train(training)
    expected = theirs.eval()(**inputs)
    for name in ("logits", "start_logits", "end_logits"):
        if getattr(out, name) is None:
            continue
        found, published = getattr(out, name).cpu().float(), getattr(expected, name)
        difference = float((found - published).abs().max())
        largest = max(1.0, float(published.abs().max()))
        if not difference <= TOLERANCE * largest:
            raise ExportMismatchError(
                f"{name} differ by {difference:.2g} from those that transformers computes "
                f"(largest {largest:.3g}); nothing was saved"
            )
