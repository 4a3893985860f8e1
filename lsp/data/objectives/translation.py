"""Write the second text of a pair from the first (`data.field`, `data.target_field`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.decoder import Part, encoder_decoder
from lsp.data.objectives.documents import documents
from lsp.data.objectives.sample import Row, Sample, Vocabulary


def translation(
    row: Row, generator: np.random.Generator, config: ObjectiveConfig, vocabulary: Vocabulary
) -> Sample:
    """A document is the first text, eos, the second text, eos; each text keeps its eos.

    The piece of a pair that was cut before its second text begins is read, and nothing predicted.
    """

    def parts() -> Iterator[Part]:
        for document in documents(row, vocabulary):
            ends = np.flatnonzero(document.ids == vocabulary.eos_id)
            cut = int(ends[0]) + 1 if len(ends) else len(document.ids)
            yield Part(document, document.ids[:cut], document.ids[cut:])

    return encoder_decoder(row, parts(), config, vocabulary)
