"""Reading a batch with a native model, by the published names of its arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lsp.core.errors import require
from lsp.models.heads.outputs import Reading
from lsp.models.interface import LanguageModel
from lsp.models.layers.fresh import normal_weights
from lsp.models.layers.trace import Trace


class Reader(ABC):
    """What the heads need to know of an architecture.

    Attributes:
        backbone: The model that is read with.
    """

    prefix: str
    """Name of the model within a head, in published weights."""
    other_names: Mapping[str, str] = MappingProxyType({})
    """Names in published files of weights that have another name here."""

    def __init__(self, backbone: LanguageModel) -> None:
        self.backbone = backbone

    @property
    def config(self) -> Any:
        return self.backbone.config

    @property
    def width(self) -> int:
        """Of the hidden states that a head reads."""
        return int(self.config.hidden_size)

    @property
    def head_dropout(self) -> float:
        """Probability of dropping an element in a classifier."""
        return float(self.config.hidden_dropout_prob)

    @property
    def encoder(self) -> Any:
        """What runs the layers, and can be looked at while it does."""
        return getattr(self.backbone, self.prefix).encoder

    @property
    def embedding(self) -> nn.Module:
        """From token ids to their vectors."""
        embedding: nn.Module = getattr(self.backbone, self.prefix).embeddings.word_embeddings
        return embedding

    def some_ids(self, inputs_embeds_BLD: torch.Tensor) -> torch.Tensor:
        """Ids that mean nothing, neither padding nor a separator, for given vectors: (B, L)."""
        special = {getattr(self.config, f"{kind}_token_id", None) for kind in ("pad", "sep")}
        plain = next(number for number in range(3) if number not in special)
        shape, device = inputs_embeds_BLD.shape[:2], inputs_embeds_BLD.device
        return torch.full(shape, plain, dtype=torch.int64, device=device)

    @contextmanager
    def embedded(self, inputs_embeds_BLD: torch.Tensor) -> Iterator[None]:
        """Puts given vectors in the place of those of the tokens that are read meanwhile."""

        def instead(module: nn.Module, ids: Any, found_BLD: torch.Tensor) -> torch.Tensor:
            given_BLD = inputs_embeds_BLD.to(found_BLD.dtype)
            padding = found_BLD[:, given_BLD.shape[1] :]
            # A head that shares the table's weight relies on the table to be differentiated.
            return torch.cat([given_BLD, padding], dim=1) + 0 * found_BLD

        handle = self.embedding.register_forward_hook(instead)
        try:
            yield
        finally:
            handle.remove()

    @abstractmethod
    def read(
        self,
        task: str,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Reading:
        """Reads rows.

        Args:
            task: Name of the head, which may decide what is seen.
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding.
            segment_ids: (B, L) document numbers, 0 for padding, in place of `attention_mask`.
            position_ids: (B, L) positions from 0.
            output_attentions: Whether to show what attention sees.
            output_hidden_states: Whether to show the stream between the layers.
        """

    def published_name(self, name: str) -> str:
        """The published name of a weight of the model."""
        return name

    def published_besides(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What published files hold besides these weights, which have their published names."""
        return {}

    @abstractmethod
    def dropped(self, name: str) -> bool:
        """Whether a name in published files is of nothing that a head reads."""

    def initialise(self, module: nn.Module) -> None:
        """Draws fresh weights of a module of a head."""
        normal_weights(module, self.config.initializer_range)

    def drop_head(self) -> None:
        """Takes the model's own head away."""
        del self.backbone.lm_head

    @abstractmethod
    def scores(self, hidden_BLW: torch.Tensor) -> torch.Tensor:
        """Scores of the model's own head: (B, L, V)."""

    @abstractmethod
    def tiled_loss(
        self, hidden_BLW: torch.Tensor, labels_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and count of the model's own head, without the scores of all positions."""

    def _traced(
        self,
        run: Callable[[], torch.Tensor],
        look: Callable[[Any, torch.Tensor, Any], Any] | None,
        output_hidden_states: bool,
    ) -> tuple[torch.Tensor, Trace]:
        """Runs the model while its encoder is looked at, if anything is asked for."""
        trace = Trace(hidden_states=output_hidden_states, look=look)
        encoder = self.encoder
        encoder.trace = trace if output_hidden_states or look is not None else None
        try:
            return run(), trace
        finally:
            encoder.trace = None


def segments_of(
    attention_mask: torch.Tensor | None, segment_ids: torch.Tensor | None
) -> torch.Tensor | None:
    """(B, L) document numbers, 0 for padding; None for one document per row without padding."""
    require(
        attention_mask is None or segment_ids is None,
        "attention_mask and segment_ids both say what is padding: give one of them",
    )
    return segment_ids if attention_mask is None else (attention_mask != 0).long()
