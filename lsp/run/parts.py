"""What a run is made of, for every verb: its data, its vocabulary, its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from data_pipelines.prepare import PreparedData, prepare
from lsp.core.errors import UserError
from lsp.data.batches import BatchMaker
from lsp.data.objectives.sample import Vocabulary
from lsp.data.objectives.special import special_roles, with_decoder_start
from lsp.models import registry
from lsp.models.interface import LanguageModel
from lsp.run.config import RunConfig


def prepare_data(config: RunConfig) -> PreparedData:
    """Prepares the corpus of a run, or finds it prepared."""
    architecture = registry.get(registry.name_of(config.architecture))
    return prepare(
        config.data,
        config.tokenizer,
        config.packing,
        sequence_length=config.sequence_length,
        length_multiple=architecture.length_multiple(config.architecture),
        seed=config.seed,
        special=special_roles(config.objective, config.longest_row),
    )


def complete_architecture(config: RunConfig, prepared: PreparedData) -> Vocabulary:
    """Fills in what the architecture's config leaves to the run, in place."""
    vocabulary = vocabulary_of(prepared)
    architecture = registry.get(registry.name_of(config.architecture))
    config.architecture = architecture.resolve(
        config.architecture,
        vocab_size=vocabulary.size,
        sequence_length=config.longest_row,
        objective=config.objective.name,
        special_ids=with_decoder_start(config.objective, vocabulary.roles),
    )
    return vocabulary


def vocabulary_of(prepared: PreparedData) -> Vocabulary:
    """What objectives need to know of the tokenizer."""
    special = prepared.manifest["tokenizer"]["special_ids"]
    return Vocabulary(
        size=prepared.manifest["tokenizer"]["vocab_size"],
        mask_id=special.get("mask"),
        special_ids=frozenset(special.values()),
        roles=special,
        read_marks=prepared.marks,
    )


def bytes_per_token(prepared: PreparedData, split: str) -> float:
    """Bytes of text behind a token of the split, to turn nats per token into bits per byte."""
    counts = prepared.manifest["splits"][split]
    return counts["bytes"] / max(1, counts["tokens"])


def build_model(config: RunConfig) -> LanguageModel:
    """The model with fresh weights from the global generator."""
    architecture = registry.get(registry.name_of(config.architecture))
    return architecture.build(config.architecture, config.memory)


def load_weights(model: LanguageModel, weights: Mapping[str, torch.Tensor], origin: Path) -> None:
    """Sets a model's weights, which may be read one at a time.

    Raises:
        UserError: If names or shapes differ, naming the first.
    """
    own = model.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        where = "the checkpoint" if name not in weights else "the model"
        raise UserError(f"{origin}: {name} is missing from {where}")
    for name, value in weights.items():
        if own[name].shape != value.shape:
            raise UserError(
                f"{origin}: {name} has shape {tuple(value.shape)}, the model needs "
                f"{tuple(own[name].shape)}"
            )
        own[name].copy_(value)


def batch_maker(
    config: RunConfig, prepared: PreparedData, split: str, vocabulary: Vocabulary
) -> BatchMaker:
    """Makes batches of a split, in the order in which the architecture is to read them."""
    architecture = registry.get(registry.name_of(config.architecture))
    return BatchMaker(
        prepared.split(split),
        config.objective,
        vocabulary,
        config.seed,
        contiguous=config.trainer.contiguous(architecture.remembers),
    )
