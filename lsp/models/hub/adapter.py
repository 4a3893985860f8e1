"""A model of `transformers` as one of ours.

Weights have their published names behind `model.`. Losses are ours: sums and counts, of labels
that are shifted already, with the published head a tile of positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lsp.models.hub import masks
from lsp.models.hub.config import HubConfig
from lsp.models.hub.heads import PublishedHead
from lsp.models.hub.losses import LOSSES
from lsp.models.interface import LanguageModel
from lsp.models.layers.dropout import derive_seed
from lsp.models.memory import MemoryConfig


class HubModel(LanguageModel):
    """A published model with its head.

    Args:
        config: Settled.
        model: Of `transformers`, made ready (`build.py`).
        memory: Settled.
    """

    def __init__(self, config: HubConfig, model: nn.Module, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.row = config.row
        self.model: Any = model
        self.head = PublishedHead(model, self.row.body or str(model.base_model_prefix))
        self._seed: int | None = None

    def begin_micro_batch(self, seed: int, first_row: int = 0) -> None:
        """Sets the seed of everything random in the next forward pass in training mode.

        A pass that was given none draws one number from torch's global CPU generator.
        """
        self._seed = derive_seed(seed, first_row)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **extra: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and number of predictions; see `Batch.extra` for what else there may be."""
        self.config.check_length(input_ids.shape[1])
        with self.randomness():
            loss = LOSSES.get(self.config.objective or "")
            if loss is not None:
                batch = {
                    "input_ids": input_ids,
                    "labels": labels,
                    "segment_ids": segment_ids,
                    "position_ids": position_ids,
                    **extra,
                }
                return loss(self, {k: v for k, v in batch.items() if v is not None})
            hidden_BLD = self.body_output(input_ids, segment_ids, position_ids)[0]
            return self.head.loss(hidden_BLD, labels, self.memory)

    def body_output(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **more: Any,
    ) -> Any:
        """What the published body answers with; its first entry is (B, L, D) hidden states.

        Args:
            input_ids: (B, L) tokens.
            segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
            position_ids: (B, L) positions in the document; None for 0..L-1.
            more: For the body, as it is.
        """
        body = self.head.body
        given = masks.arguments(
            self.row,
            body,
            input_ids=input_ids,
            segment_ids=segment_ids,
            position_ids=position_ids,
            causal=self.config.is_decoder,
            config=self.config,
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

    def lm_head(self, hidden_BKD: torch.Tensor) -> torch.Tensor:
        """Scores of positions: (B, K, V)."""
        return self.head.scores(hidden_BKD)

    def logits(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of every position: (B, L, V)."""
        return self.lm_head(self.hidden_states(input_ids, segment_ids, position_ids))

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Everything random is a function of the seed, and the global generators stay as they are.

        In evaluation nothing is random.
        """
        if not self.training:
            yield
            return
        seed, self._seed = self._seed, None
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        device = next(self.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def execution_plan(self, rows: int, length: int) -> dict[str, int]:
        weight = next(self.parameters())
        width = int(self.config.value("hidden_size"))
        hidden_BLD = weight.new_empty(()).expand(rows, length, width)
        return {"the head": self.head.tiles(hidden_BLD, self.memory)}

    def flops_per_token(self, sequence_length: int) -> float:
        """See `LanguageModel`; attention counts every key that it scores."""
        embedding = self.model.get_input_embeddings()
        weights = sum(p.numel() for p in self.parameters() if p.requires_grad)
        if self.model.get_output_embeddings() is not None and not self._tied:
            weights -= sum(p.numel() for p in embedding.parameters())
        layers = self.config.value("num_hidden_layers") or 0
        width = self.config.value("hidden_size") or 0
        return 6.0 * weights + 12.0 * layers * width * sequence_length

    @property
    def _tied(self) -> bool:
        return self.model.get_output_embeddings().weight is self.model.get_input_embeddings().weight
