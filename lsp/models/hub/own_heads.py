"""Heads for what was published without one, of the published parts; imports `transformers`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.markuplm.modeling_markuplm import (
    MarkupLMModel,
    MarkupLMOnlyMLMHead,
    MarkupLMPreTrainedModel,
)


class MarkupLMForMaskedLM(MarkupLMPreTrainedModel):  # type: ignore[misc]
    """MarkupLM (2110.08518) with the head for masked tokens that its file has, but no class uses.

    The decoder's weight is the embedding's. Names are those of BERT's published head.

    Args:
        config: A `MarkupLMConfig`.
    """

    _tied_weights_keys: ClassVar = {
        "cls.predictions.decoder.weight": "markuplm.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.markuplm = MarkupLMModel(config, add_pooling_layer=False)
        self.cls = MarkupLMOnlyMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> torch.nn.Module:
        """The projection onto the vocabulary."""
        decoder: torch.nn.Module = self.cls.predictions.decoder
        return decoder

    def forward(self, input_ids: torch.Tensor | None = None, **given: Any) -> MaskedLMOutput:
        """Scores of every position: `logits` (B, L, V).

        Args:
            input_ids: (B, L) tokens.
            given: What the body takes.
        """
        hidden_BLD = self.markuplm(input_ids, **given)[0]
        return MaskedLMOutput(logits=self.cls(hidden_BLD))


OWN = {"MarkupLMModel": MarkupLMForMaskedLM}
"""By the published body."""
