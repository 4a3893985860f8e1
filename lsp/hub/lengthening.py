"""Reading a published RoBERTa as a Longformer of a greater length (2004.05150, section 5)."""

from __future__ import annotations

from pathlib import Path

from lsp.core.errors import UserError
from lsp.hub.importing import PublishedModel
from lsp.hub.published import CONFIG_FILE, checked_config, read_published_config
from lsp.hub.weights import read_published_weights
from lsp.models.longformer_config import MODEL_TYPE, LongformerConfig
from lsp.models.roberta_conversion import lengthened, long_weights, shared_values


def read_lengthened(
    folder: Path, sequence_length: int, attention_window: int | list[int]
) -> PublishedModel:
    """Reads the config and weights of a published RoBERTa, and makes a Longformer of them.

    Args:
        folder: What `RobertaForMaskedLM` was saved to.
        sequence_length: Positions that the Longformer has.
        attention_window: Of every layer, or one for each.

    Raises:
        UserError: A file is missing or damaged, the weights are not those that the config
            describes, or the length or the windows cannot work.
    """
    try:
        values, ignored = shared_values(read_published_config(folder))
    except UserError as error:
        raise UserError(f"{CONFIG_FILE}: {error}") from None
    short = checked_config(LongformerConfig, values)
    config = lengthened(short, sequence_length, attention_window)
    weights = long_weights(read_published_weights(folder), short, config)
    return PublishedModel(
        folder=folder,
        architecture=MODEL_TYPE,
        config=config,
        objective="masked",
        weights={name: weight.float().contiguous() for name, weight in weights.items()},
        ignored=ignored,
    )
