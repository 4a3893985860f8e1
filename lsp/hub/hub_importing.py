"""Published checkpoints of the architectures that `transformers` has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lsp.core.errors import UserError, require
from lsp.hub.hub_forms import PREFIX
from lsp.hub.importing import PublishedModel
from lsp.hub.published import CONFIG_FILE
from lsp.models.hub import keys
from lsp.models.hub.build import build
from lsp.models.hub.config import HubConfig
from lsp.models.hub.settle import settle
from lsp.models.hub.table import HubRow, row_of
from lsp.models.memory import MemoryConfig

SEED = 0
"""Of weights that a checkpoint does not have, so that an import can be repeated."""
POOLERS = ("pooler",)
"""Parts of a body that some heads do not read, and that are published with the others alone."""


def read_hub(
    folder: Path, published: Mapping[str, Any], objective: str | None, sequence_length: int
) -> PublishedModel:
    """Reads a checkpoint with the published class itself.

    Args:
        folder: With `config.json` and weights: safetensors, whole or in shards, or older pickles,
            which are opened with torch's restricted unpickler.
        published: Content of the `config.json`.
        objective: What the model is to be trained for; None for what its head was made for.
        sequence_length: Where the config does not say how many positions there are.

    Raises:
        UserError: The architecture or the objective is not known, or the weights are not those that
            the config describes.
    """
    model_type = str(published.get("model_type"))
    row = row_of(model_type)
    config = HubConfig(model_type, name=str(folder))
    objective = objective or objective_of(row, published)
    made = keys.make_config(
        model_type, {k: v for k, v in published.items() if k not in keys.BOOKKEEPING}
    )
    config = settle(config, int(made.vocab_size), sequence_length, objective, {})
    config.name = None
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = build(config, MemoryConfig(residual="stored"))
        source, found = _load(type(model.model), folder, model.model.config)
    missing = sorted(found["missing_keys"])
    _check_body(folder, model.model, missing)
    model.model.load_state_dict(source.state_dict())
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    own = sorted(name for name in weights if not name.startswith(PREFIX))
    known = keys.known_keys(model_type) | keys.BOOKKEEPING
    return PublishedModel(
        folder=folder,
        architecture="hub",
        config=config,
        objective=objective,
        weights={name: _as_float(weight).clone() for name, weight in weights.items()},
        ignored=sorted(set(published) - known),
        fresh=(*missing, *own),
        left_over=tuple(sorted(found["unexpected_keys"])),
        made_for=int(config.value(row.positions) or 0) if row.positions else 0,
    )


def objective_of(row: HubRow, published: Mapping[str, Any]) -> str:
    """The objective that a checkpoint's head was made for, or that of the architecture's paper."""
    names = published.get("architectures") or ()
    return next((o for o, head in row.heads.items() if head in names), row.objectives[0])


def _load(published: Any, folder: Path, config: Any) -> tuple[Any, dict[str, Any]]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it tells what is missing, and so do we
    try:
        model, found = published.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            weights_only=True,
        )
    except Exception as error:  # whatever loading someone else's files can raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} has no weights that can be read: {reason[:200]}") from error
    finally:
        logging.set_verbosity(verbosity)
    return model, found


def _check_body(folder: Path, model: Any, missing: list[str]) -> None:
    """A head may be fresh, what it stands on not."""
    prefix = f"{model.base_model_prefix}."
    body = [
        name
        for name in missing
        if (name.startswith(prefix) or model.base_model is model)
        and not any(part in name for part in POOLERS)
    ]
    rest = f" and {len(body) - 1} more" if len(body) > 1 else ""
    require(
        not body,
        f"{folder} lacks {body[0] if body else ''}{rest}, which {type(model).__name__} of its "
        f"{CONFIG_FILE} needs: the weights are those of another model",
    )


def _as_float(weight: torch.Tensor) -> torch.Tensor:
    return (weight.float() if weight.is_floating_point() else weight).contiguous()
