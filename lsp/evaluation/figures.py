"""Sums of losses, and the figures that a person compares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass
class Sums:
    """What was found at some predicted tokens.

    Attributes:
        loss_sum: Nats.
        correct: Tokens that were the likeliest.
        count: Tokens.
    """

    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0

    def add(self, losses: torch.Tensor, hits: torch.Tensor) -> None:
        """Adds losses in nats and hits, of the same shape."""
        self.loss_sum += float(losses.double().sum())
        self.correct += int(hits.sum())
        self.count += losses.numel()


@dataclass(frozen=True)
class Units:
    """How many bytes, characters and words of text a token of a split stands for, on average.

    Attributes:
        bytes: UTF-8 bytes; None where a loss does not spell the text (masked models).
        characters: Unicode code points; None where they were not counted.
        words: Runs of characters other than whitespace; None where they were not counted.
    """

    bytes: float | None
    characters: float | None = None
    words: float | None = None

    def figures(self, sums: Sums) -> dict[str, float | int | None]:
        """Loss and accuracy per token, and the loss in bits per byte; of at least one token."""
        loss = sums.loss_sum / sums.count
        return {
            "tokens": sums.count,
            "loss": loss,
            "bits_per_byte": bits(loss, self.bytes),
            "accuracy": sums.correct / sums.count,
        }

    def bits_per_character(self, loss: float) -> float | None:
        """From nats per token."""
        return bits(loss, self.characters)

    def word_perplexity(self, loss: float) -> float | None:
        """From nats per token: e to the nats per word, ends of documents included."""
        return None if not self.words else math.exp(min(loss / self.words, 700.0))


def bits(loss: float, per_token: float | None) -> float | None:
    """Nats per token as bits per what a token has `per_token` of."""
    return None if not per_token else loss / math.log(2) / per_token
