"""The body of a model as a language model, for the certificate.

Objectives that need more than a row of tokens, such as pairs of texts or a decoder's inputs, have
losses that depend on a batch in more ways than the mixing of tokens. What is certified of such
models is what their heads read: the hidden states. With an encoder and a decoder these are the
decoder's, once as a function of what it reads itself, and once of what the encoder reads.
"""

from __future__ import annotations

from typing import Any

import torch

from lsp.core.batch import IGNORE_INDEX
from lsp.core.objectives import DECODER, NEXT_TOKEN
from lsp.models.interface import LanguageModel
from lsp.models.layers.exchange import Exchange

ENCODER, WRITER = "encoder", "decoder"


class Body(LanguageModel):
    """Answers with hidden states in the place of scores.

    Args:
        model: A model of `transformers`.
        side: `encoder` or `decoder`, whose tokens are the rows; empty where there is one alone.
    """

    def __init__(self, model: LanguageModel, side: str = "") -> None:
        super().__init__()
        self.model: Any = model
        self.config, self.side = model.config, side

    def logits(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states: (B, L, D)."""
        if not self.side:
            found: torch.Tensor = self.model.hidden_states(input_ids, segment_ids, position_ids)
            return found
        # The other side reads a text that stays the same.
        length, size = input_ids.shape[1], self.config.vocab_size
        others = torch.arange(length, device=input_ids.device).flip(0).expand_as(input_ids) % size
        texts = (input_ids, others) if self.side == ENCODER else (others, input_ids)
        names = ("input_ids", "segment_ids", "position_ids")
        batch: dict[str, Any] = {}
        for prefix, text in zip(("", "decoder_"), texts, strict=True):
            given = (text, segment_ids, position_ids)
            batch |= {prefix + name: x for name, x in zip(names, given, strict=True)}
        states: torch.Tensor = self.model.decoder_states(batch)
        return states

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A sum of the hidden states at labelled positions, and how many these are."""
        labelled_BL = labels != IGNORE_INDEX
        hidden_TD = self.logits(input_ids, segment_ids, position_ids)[labelled_BL]
        # Different weights: the sum over what is normed would not depend on anything.
        weight_D = torch.arange(hidden_TD.shape[-1], device=hidden_TD.device).cos()
        return (hidden_TD.float() * weight_D).sum(), labelled_BL.sum()

    def begin_micro_batch(self, seed: int, first_row: int = 0) -> None:
        self.model.begin_micro_batch(seed, first_row)

    def share_rows(self, exchange: Exchange) -> None:
        self.model.share_rows(exchange)

    def flops_per_token(self, sequence_length: int) -> float:
        found: float = self.model.flops_per_token(sequence_length)
        return found


def bodies(model: LanguageModel, causal: bool) -> list[tuple[LanguageModel, bool]]:
    """What is certified of a model, and whether it sees only what comes before.

    Args:
        model: Any.
        causal: Whether it is trained to predict the next token.
    """
    if getattr(model, "family", None) is None:
        return [(model, causal)]
    if model.config.objective in DECODER:
        return [(Body(model, WRITER), True), (Body(model, ENCODER), False)]
    return [(Body(model), model.config.objective in NEXT_TOKEN)]
