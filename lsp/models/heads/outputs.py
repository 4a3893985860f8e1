"""What a model with a head answers, under the published names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]


@dataclass
class HeadOutput:
    """The fields of every published output; those that a head does not have are None.

    A field is read as an attribute, as `out["loss"]`, or by its number among those that are there,
    as `out[0]`; `dict(**out)` works.

    Attributes:
        loss: Scalar; where labels were given.
        losses: (B, L - 1) of each predicted token (Transformer-XL's language model).
        prediction_scores: (B, L, V) log-probabilities (Transformer-XL's language model), which
            are its `logits` too.
        logits: Scores: (B, L, V) of tokens, (B, labels) of a row, (B, choices), or
            (B, L, labels) of each token.
        start_logits: (B, L) scores of where an answer begins.
        end_logits: (B, L) scores of where it ends.
        mems: (M, B, D) of each layer: what the next rows remember (Transformer-XL).
        past_buckets_states: Of each layer (B, N, R, L) buckets, empty in local layers, and (B, L,
            D) inputs of its attention (Reformer, `use_cache=True`).
        hidden_states: (B, L, D) before the first and after each layer.
        attentions: Attention weights of each layer; see the architecture for their layout.
        global_attentions: (B, N, L, G) of each layer: of global tokens to all (Longformer).
    """

    loss: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    prediction_scores: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    mems: list[torch.Tensor] | None = None
    past_buckets_states: list[Tensors] | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    global_attentions: Tensors | None = None

    def keys(self) -> list[str]:
        """Names of the fields that are there."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, in their order."""
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass
class Reading:
    """What a head is given: the stream after the last layer, and what was asked for beside it.

    Attributes:
        hidden: (B, L, W) hidden states after the last layer, as the heads read them.
        shown: Fields of `HeadOutput` that do not depend on the head.
    """

    hidden: torch.Tensor
    shown: dict[str, Any]
