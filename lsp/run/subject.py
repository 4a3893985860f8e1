"""A trained model with the data that it is evaluated on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from data_pipelines.manifest import content_digest
from data_pipelines.prepare import PreparedData
from lsp.core.errors import UserError
from lsp.evaluation.figures import Units
from lsp.models import registry
from lsp.models.interface import Architecture, LanguageModel
from lsp.parallel.runtime import choose_device
from lsp.run.config import RunConfig
from lsp.run.load import LoadedRun
from lsp.run.parts import bytes_per_token, prepare_data


@dataclass(frozen=True)
class Subject:
    """A trained model with the data that it is evaluated on.

    Attributes:
        loaded: The run.
        prepared: Its data.
        split: `validation` or `train`.
    """

    loaded: LoadedRun
    prepared: PreparedData
    split: str

    @property
    def run(self) -> RunConfig:
        """The run's configuration."""
        return self.loaded.config

    @property
    def architecture(self) -> Architecture:
        """The model's row of the registry."""
        return registry.get(registry.name_of(self.run.architecture))

    @property
    def causal(self) -> bool:
        """Whether the model predicts the next token."""
        return self.run.objective.name == "causal"

    @cached_property
    def model(self) -> LanguageModel:
        """On the device that the run says."""
        return self.loaded.model.to(self.device)

    @cached_property
    def device(self) -> torch.device:
        """Where the model is."""
        return choose_device(self.run.parallelism)

    @property
    def units(self) -> Units:
        """What a token of the split stands for; nothing where losses do not spell the text."""
        if not self.causal:
            # Masked tokens are a part of the text: their loss spells no bytes.
            return Units(None)
        counts = self.prepared.manifest["splits"][self.split]
        tokens = max(1, counts["tokens"])
        return Units(
            bytes_per_token(self.prepared, self.split),
            counts["characters"] / tokens,
            counts["words"] / tokens,
        )


def open_subject(loaded: LoadedRun, split: str) -> Subject:
    """Finds the data of a run.

    Raises:
        UserError: The split is empty.
    """
    prepared = prepare_data(loaded.config)
    trained_on = loaded.state.get("data_digest")
    if trained_on and trained_on != content_digest(prepared.manifest):
        print("lsp: the data is not what the run was trained on: it has changed", file=sys.stderr)
    if len(prepared.split(split)) == 0:
        raise UserError(
            f"split={split} has no rows: evaluate the other one, or train with more data or "
            "another data.validation_fraction"
        )
    return Subject(loaded, prepared, split)


@contextmanager
def progress_of(name: str, total: int) -> Iterator[Any]:
    """A bar on stderr, which gives way when it is done; yields what advances it."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=total)
        yield lambda amount: progress.update(task, advance=amount)


def note(message: str) -> None:
    """Says on stderr what a user may want to know."""
    print(f"lsp: {message}", file=sys.stderr)
