"""The head of models whose body no stand-in can take the place of: it has two halves."""

from __future__ import annotations

from typing import Any

import torch

from lsp.models.hub.heads import Head


class Projection(Head):
    """The projection of an encoder-decoder onto its vocabulary, as the published classes use it.

    Args:
        model: As published; its `lm_head` is the projection.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        super().__init__(
            model, [model.lm_head], [m for m in model.modules() if m is not model.lm_head]
        )

    def scores(self, hidden_BKD: torch.Tensor) -> torch.Tensor:
        config = self._model.config
        if _scaled(config):
            hidden_BKD = hidden_BKD * config.d_model**-0.5
        scores_BKV: torch.Tensor = self._model.lm_head(hidden_BKD)
        bias_1V = getattr(self._model, "final_logits_bias", None)
        return scores_BKV if bias_1V is None else scores_BKV + bias_1V


def _scaled(config: Any) -> bool:
    """Whether states are scaled first, since the projection is the embedding (1910.10683)."""
    if config.model_type == "switch_transformers":
        return bool(config.tie_word_embeddings)
    return bool(getattr(config, "scale_decoder_outputs", False))
