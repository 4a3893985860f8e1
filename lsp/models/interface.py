"""What the trainer, the exporter and the certificates need of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import require
from lsp.models.layers.exchange import Exchange
from lsp.models.memory import MemoryConfig

SCORES_AT_ONCE = 2**26
"""Numbers: the scores of a whole row, (L, V), may not fit."""


class LanguageModel(nn.Module, ABC):
    """A model that answers with the *sum* of its loss and the *count* of predicted positions.

    Models are written for one device. Nothing here knows of ranks, sharding or Hydra.
    """

    config: Any

    @abstractmethod
    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of a batch.

        Args:
            input_ids: (B, L) token ids.
            labels: (B, L) what each position predicts (already shifted), -100 for nothing.
            segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
            position_ids: (B, L) positions; None for 0..L-1.

        Returns:
            The cross-entropy in nats summed over predicted positions (fp32 scalar), and their
            number (int64 scalar).
        """

    @abstractmethod
    def logits(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of the next (causal) or the same (masked) token: (B, L, V)."""

    @torch.no_grad()
    def token_losses(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **read: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `forward` adds up, token by token, for measurements.

        This one asks the model for `hidden_states`, and its `lm_head` for the scores of few of
        them at a time, which may be logits or log probabilities.

        Args:
            input_ids: As in `forward`, like the other three.
            labels: (B, L).
            segment_ids: (B, L).
            position_ids: (B, L).
            read: What else the model's `hidden_states` takes.

        Returns:
            Of the T predicted positions in their order in the batch: (T,) cross-entropy in nats,
            fp32; (T,) whether no other token had a higher score.
        """
        model: Any = self
        predicted_BL = labels != IGNORE_INDEX
        hidden_TX = model.hidden_states(input_ids, segment_ids, position_ids, **read)[predicted_BL]
        labels_T = labels[predicted_BL]
        losses_T = labels_T.new_zeros(labels_T.shape, dtype=torch.float32)
        hits_T = torch.zeros_like(labels_T, dtype=torch.bool)
        size = max(1, SCORES_AT_ONCE // int(self.config.vocab_size))
        for start in range(0, len(labels_T), size):
            part = slice(start, start + size)
            scores_KV = model.lm_head(hidden_TX[None, part])[0].float()
            losses_T[part] = F.cross_entropy(scores_KV, labels_T[part], reduction="none")
            hits_T[part] = scores_KV.argmax(-1) == labels_T[part]
        return losses_T, hits_T

    def repeat_positions(self, learned: int) -> tuple[str, ...]:
        """Sets absolute positions that no row has had yet to those that rows have had.

        Longer rows then begin where shorter ones have come to (2004.05150, section 5), instead of
        at random vectors. A model of relative positions has nothing to do.

        Args:
            learned: Positions of the longest row so far.

        Returns:
            Names of the weights that were changed.
        """
        return ()

    def recall(self, memory: dict[str, torch.Tensor] | None) -> None:
        """Sets what the next forward pass remembers of the text before its rows.

        Args:
            memory: What `remembered` gave after the rows before, or a part of its rows; None for
                nothing.
        """
        assert memory is None, f"{type(self).__name__} has no memory"

    def remembered(self) -> dict[str, torch.Tensor] | None:
        """What the last forward pass leaves for the rows that follow; None without a memory.

        Each tensor has the rows as its first dimension and is apart from any graph, so lanes of
        the batch can be cut out, kept, saved and given to other processes.
        """
        return None

    def hold_sight(self, held: bool) -> bool:
        """Makes passes look where the first of them looked, whatever their tokens are.

        For models that choose by content where to look, such as LSH attention, so that a
        certificate can tell what is seen from what chooses what is seen.

        Args:
            held: Whether to begin or to end that.

        Returns:
            Whether the model is such a one; others change nothing.
        """
        return False

    def new_cache(self) -> Any:
        """An empty memory for `step`: what the model remembers of one batch of texts."""
        return []

    @torch.no_grad()
    def step(self, input_ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """Reads the next tokens of a text and scores the one after them.

        This one reads the whole text again every time; models that can do better replace both.

        Args:
            input_ids: (B, T) tokens that follow those already read; the prompt, or one token.
            cache: Made by `new_cache`, and brought up to date.

        Returns:
            (B, V) scores of the next token.
        """
        cache.append(input_ids)
        return self.reread(cache)

    def reread(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Scores the token after a text, of which nothing is remembered.

        Args:
            parts: (B, T) each: the prompt, and what was written since.

        Returns:
            (B, V) scores of the next token.
        """
        self.recall(None)
        return self.logits(torch.cat(parts, dim=1))[:, -1]

    @abstractmethod
    def flops_per_token(self, sequence_length: int) -> float:
        """Floating-point operations of one training step per token, without recomputation.

        Multiply and add count as two; the backward pass counts twice the forward. The convention
        is that of PaLM (2204.02311, appendix B), so that model FLOPs utilisation is comparable.
        """

    def share_rows(self, exchange: Exchange) -> None:
        """From now on `forward` is given a share of every row, and asks `exchange` for the rest.

        The shares of a row are equal runs of positions; labels, `segment_ids` and `position_ids`
        come as the share's too. The loss sum and the count are those of the share.

        Raises:
            UserError: The model can only see whole rows.
        """
        require(
            exchange.degree == 1,
            f"parallelism.sequence={exchange.degree}: {type(self).__name__} cannot share the "
            "positions of a row; use parallelism.sequence=1",
        )

    def like_stream(self, rows: int, length: int, width: int) -> torch.Tensor:
        """Stands in for a stream (B, L, D) where only shape, type and device matter."""
        return next(self.parameters()).new_empty(()).expand(rows, length, width)

    def execution_plan(self, rows: int, length: int) -> dict[str, int]:
        """In how many pieces each part computes a micro-batch, by the name of the part.

        Under sharding each piece may be a collective, so every process has to have the same.

        Args:
            rows: Of the micro-batch.
            length: Positions of a row that this model is given.
        """
        return {}

    def activation_bytes(
        self, rows: int, length: int, *, half: bool = False, memory: MemoryConfig | None = None
    ) -> dict[str, int]:
        """Estimates what a training pass takes beside weights, gradients and optimizer state.

        Args:
            rows: Of the micro-batch.
            length: Positions of a row that this model is given.
            half: Whether matrix products are in two bytes, under autocast.
            memory: As if the model traded memory for time in this way; None for its own.

        Returns:
            Bytes at the peak, by what they are for; empty where the model cannot tell.
        """
        return {}

    @abstractmethod
    def begin_micro_batch(self, seed: int, first_row: int = 0) -> None:
        """Sets the seed of everything random in the next training forward pass.

        Args:
            seed: Of the optimizer step.
            first_row: Number, within the global batch, of the micro-batch's first row: what may
                differ between rows depends on it, what must not does not.
        """

    def measure_drift(self, enabled: bool) -> None:
        """Asks the next backward pass to measure how exactly it reconstructs its inputs."""

    def reversible_drift(self) -> float | None:
        """Largest relative error of the last measured reconstruction; None without one.

        Reading it waits for the device.
        """
        return None


@dataclass(frozen=True)
class Architecture:
    """One row of the registry.

    Attributes:
        name: Value of `architecture=`; `lsp.hub` knows what published files call it.
        config_class: Dataclass with the field names of the published `config.json`.
        build: `build(config, memory=None)` makes the model, with fresh weights, from its config
            and a `MemoryConfig`.
        begin: `begin(model, fresh)` gets that model ready for training: where it is `fresh`, no
            checkpoint's weights will follow.
        objectives: Given a config, the names of the objectives it can be trained with, that of
            its paper first.
        check_shares: `check_shares(config, sequence_length, degree)` refuses a
            `parallelism.sequence` that the heads or the length cannot be shared by, naming those
            that can.
        length_multiple: Given a config, the number every sequence length must be a multiple of.
        resolve: `resolve(config, *, vocab_size, sequence_length, objective, special_ids=None)`
            completes a config from what the run knows and refuses what cannot work, naming the
            lengths that would. `special_ids` are the tokenizer's by their roles (`pad`, `eos`, …).
        residuals: Given a config, the values of `memory.residual` that it can be trained with, the
            leanest first.
        segments: Given a config, whether it keeps the documents of a row (`segment_ids`) apart.
        remembers: Whether it carries a memory from row to row, so that rows are read in order.
    """

    name: str
    config_class: type
    build: Callable[..., LanguageModel]
    objectives: Callable[[Any], tuple[str, ...]]
    length_multiple: Callable[[Any], int]
    resolve: Callable[..., Any]
    check_shares: Callable[[Any, int, int], None]
    residuals: Callable[[Any], tuple[str, ...]]
    segments: Callable[[Any], bool] = lambda _: True
    remembers: bool = False
    begin: Callable[[Any, bool], None] = lambda _, __: None
