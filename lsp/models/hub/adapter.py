"""A model of `transformers` as one of ours.

Weights have their published names behind `model.`. Losses are ours: sums and counts, of labels
that are shifted already, with the published head a tile of positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lsp.core.batch import positions_from_segments
from lsp.models.hub import caches, flops, masks
from lsp.models.hub.config import HubConfig
from lsp.models.hub.heads import PublishedHead
from lsp.models.hub.losses import decoding, family_of, head_of
from lsp.models.layers.dropout import derive_seed
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.models.memory import MemoryConfig
from lsp.models.seeded import SeededModel


class HubModel(SeededModel):
    """A published model with its head.

    Args:
        config: Settled.
        model: Of `transformers`, made ready (`build.py`).
        memory: Settled.
        parts: What the published model lacks for its objective, by the name it gets here.
    """

    def __init__(
        self,
        config: HubConfig,
        model: nn.Module,
        memory: MemoryConfig,
        parts: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.row = config.row
        self.model: Any = model
        for name, part in (parts or {}).items():
            self.add_module(name, part)
        body = self.row.body or str(model.base_model_prefix)
        self.head = head_of(model, body, config.objective)
        self.family = family_of(config.model_type, config.objective)
        self.exchange: Exchange = WHOLE_ROWS
        self.rows_seed: tuple[int, int] | None = None

    def begin_micro_batch(self, seed: int, first_row: int = 0) -> None:
        super().begin_micro_batch(seed, first_row)
        self.rows_seed = (seed, first_row)
        if self.exchange.index:
            # Shares of a row have other random numbers; the first has those of whole rows.
            self._seed = derive_seed(seed, first_row, self.exchange.index)

    def share_rows(self, exchange: Exchange) -> None:
        """See `LanguageModel`; attention that is looked up by name asks for the rest."""
        if not self.row.shares:
            super().share_rows(exchange)
        self.exchange = exchange
        masks.share(self.model, exchange)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **extra: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and number of predictions; see `Batch.extra` for what else there may be."""
        self.config.check_length(input_ids.shape[1] * self.exchange.degree)
        with self.randomness():
            if self.family is not None:
                own = self._batch(input_ids, segment_ids, position_ids, labels=labels, **extra)
                return self.family.loss(self, own)
            hidden_BLD = self.body_output(input_ids, segment_ids, position_ids)[0]
            return self.head.loss(hidden_BLD, labels, self.memory)

    def body_output(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        head: PublishedHead | None = None,
        **more: Any,
    ) -> Any:
        """What the published body answers with; its first entry is (B, L, D) hidden states.

        Args:
            input_ids: (B, L) tokens.
            segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
            position_ids: (B, L) positions in the document; None for 0..L-1.
            head: What reads another body, where there are two published models; None for the one
                that is exported.
            more: For the body, as it is.
        """
        own = self.head if head is None else head
        assert isinstance(own, PublishedHead), "a model with two halves has no body"
        body = own.body
        given = masks.arguments(
            self.row,
            body,
            input_ids=input_ids,
            segment_ids=segment_ids,
            position_ids=position_ids,
            causal=self.config.is_decoder,
            config=self.config,
            exchange=self.exchange,
        )
        return body(input_ids=input_ids, return_dict=True, **(given | more))

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states that the head reads: (B, L, D)."""
        with self.randomness():
            hidden: torch.Tensor = self.body_output(input_ids, segment_ids, position_ids)[0]
            return hidden

    def decoder_states(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Hidden states that the head reads, of the `decoder_input_ids` of a batch: (B, T, D)."""
        with self.randomness():
            return decoding.hidden_states(self, batch)

    def lm_head(self, hidden_BKD: torch.Tensor) -> torch.Tensor:
        """Scores of positions: (B, K, V)."""
        return self.head.scores(hidden_BKD)

    def logits(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **extra: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of every position: (B, L, V), or (B, T, V) of a decoder's inputs in `extra`."""
        if decoding.decodes(self):
            batch = self._batch(input_ids, segment_ids, position_ids, **extra)
            return self.lm_head(self.decoder_states(batch))
        return self.lm_head(self.hidden_states(input_ids, segment_ids, position_ids))

    @torch.no_grad()
    def token_losses(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **extra: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `LanguageModel`; `extra` as in `forward`."""
        if self.family is None:
            return super().token_losses(input_ids, labels, segment_ids, position_ids)
        batch = self._batch(input_ids, segment_ids, position_ids, labels=labels, **extra)
        with self.randomness():
            return self.family.token_losses(self, batch)

    def _batch(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        **extra: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The fields of a batch by name, with those that a loss asks for."""
        if segment_ids is None:
            segment_ids = torch.ones_like(input_ids)
        if position_ids is None:
            position_ids = positions_from_segments(segment_ids)
        own = {"input_ids": input_ids, "segment_ids": segment_ids, "position_ids": position_ids}
        return own | extra

    def new_cache(self) -> Any:
        if decoding.decodes(self):
            return decoding.Written()
        return caches.Remembered() if caches.exact(self) else super().new_cache()

    @torch.no_grad()
    def step(self, input_ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """See `LanguageModel`; with an encoder, it reads the prompt, and the decoder writes."""
        if decoding.decodes(self):
            return decoding.step(self, input_ids, cache)
        if isinstance(cache, caches.Remembered):
            return caches.step(self, input_ids, cache)
        return super().step(input_ids, cache)

    def reread(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """See `LanguageModel`; with an encoder, it reads the first part, and the decoder others."""
        if decoding.decodes(self):
            return decoding.reread(self, parts)
        caches.check_room(self, sum(part.shape[1] for part in parts))
        return super().reread(parts)

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Everything random is a function of the seed, and the global generators stay as they are.

        In evaluation nothing is random.
        """
        seed = self._take_seed()
        if seed is None:
            yield
            return
        device = next(self.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def execution_plan(self, rows: int, length: int) -> dict[str, int]:
        hidden_BLD = self.like_stream(rows, length, int(self.config.value("hidden_size")))
        return {"the head": self.head.tiles(hidden_BLD, self.memory)}

    def flops_per_token(self, sequence_length: int) -> float:
        """See `LanguageModel`; attention counts every key that it scores."""
        return flops.per_token(self, sequence_length)
