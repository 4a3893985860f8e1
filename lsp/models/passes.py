"""What the estimates of a training pass's memory have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from lsp.models.memory import MemoryConfig

FP32 = 4


@dataclass(frozen=True, kw_only=True)
class ModelPass(ABC):
    """A micro-batch on its way through a model.

    Attributes:
        memory: How the model trades memory for time.
        rows: Of the micro-batch.
        length: Positions of a row that this model holds.
        degree: How many hold the positions of a row together.
        feed_forward_tiles: Of the feed-forward layer.
        head_tiles: Of the language-model head.
        device: Where it happens.
        stream: Bytes of an element of a stream.
        product: Bytes of an element of what matrix products give.
    """

    memory: MemoryConfig
    rows: int
    length: int
    degree: int
    feed_forward_tiles: int
    head_tiles: int
    device: torch.device
    stream: int
    product: int

    @abstractmethod
    def activation_bytes(self) -> dict[str, int]:
        """Bytes by what they are for; their sum is the estimate of the peak."""

    @property
    @abstractmethod
    def _stream_size(self) -> int:
        """Numbers of a position in a stream."""

    @property
    def _positions(self) -> int:
        return self.rows * self.length

    @property
    def _stream_bytes(self) -> int:
        return self._positions * self._stream_size * self.stream

    @property
    def _half(self) -> bool:
        return self.product < self.stream

    @property
    def _stored(self) -> bool:
        return self.memory.residual == "stored"

    @staticmethod
    def _peak(kept: dict[str, int], moments: dict[str, int]) -> dict[str, int]:
        """What is there all the time, and the largest of what is there for a moment."""
        largest = max(moments, key=lambda name: moments[name])
        return {name: size for name, size in (kept | {largest: moments[largest]}).items() if size}

    def _tile(self, tiles: int) -> int:
        """Positions of the largest tile."""
        return -(-self.length // tiles) * self.rows


@dataclass(frozen=True, kw_only=True)
class SequentialPass(ModelPass):
    """A micro-batch on its way through blocks one by one (`layers/sequential.py`).

    Attributes:
        config: Of the model.
        attention_tiles: Of what attention does position by position.
    """

    config: Any
    attention_tiles: int

    @property
    @abstractmethod
    def _inner_size(self) -> int:
        """Numbers of a position inside the feed-forward layer."""

    @property
    @abstractmethod
    def _head_streams(self) -> int:
        """Tensors as wide as the stream that a tile of the head has at once."""

    @abstractmethod
    def _kept_bytes(self) -> int:
        """What is kept of all layers, but for the inputs of the last feed-forward and the head."""

    @property
    def _head_scores(self) -> int:
        """The most scores of a position."""
        return int(self.config.vocab_size)

    @property
    def _embedding_weights(self) -> int:
        """Numbers of the embedding of words, and of the head's projection."""
        return int(self.config.vocab_size) * self._stream_size

    @property
    def _waiting_bytes(self) -> int:
        return FP32 * self._embedding_weights if self.config.tie_word_embeddings else 0

    def _feed_forward_moment(self) -> int:
        weights = 2 * FP32 * 2 * self._stream_size * self._inner_size
        if self._stored:
            return self._positions * self._inner_size * self.product + weights // 4
        tile = self._tile(self.feed_forward_tiles)
        inside = tile * self._inner_size * 3 * self.product
        outside = tile * self._stream_size * 4 * self.stream
        return self._stream_bytes + inside + outside + weights

    def _head_moment(self) -> int:
        tile = self._tile(self.head_tiles)
        scores, weights = tile * self._head_scores, self._embedding_weights
        # Scores, their logarithms and gradients; later the last, and the weight's gradient.
        largest = max(scores * (2 * FP32 + self.product), scores * FP32 + FP32 * weights)
        if not self.config.tie_word_embeddings and self.head_tiles > 1:
            largest += FP32 * weights  # of the tiles before
        inside = tile * self._stream_size * self._head_streams * self.stream
        inputs = 0 if self._stored else self._stream_bytes
        return inputs + largest + inside

    def _embedding_moment(self) -> int:
        """The gradient of the embedding, when layers keep nothing any more."""
        return FP32 * self._embedding_weights - self._kept_bytes()


@dataclass(frozen=True, kw_only=True)
class BertPass(SequentialPass):
    """A micro-batch on its way through a model whose blocks and settings are those of BERT."""

    def activation_bytes(self) -> dict[str, int]:
        """Bytes by what they are for; their sum is the estimate of the peak."""
        moments = {
            "attention": self._attention_moment(),
            "a tile of the feed-forward layer": self._feed_forward_moment(),
            "a tile of the language-model head": self._head_moment(),
            "the gradients of the embeddings": self._embedding_moment(),
        }
        # The input of the embeddings' norm, and the mask of its dropout.
        kept = {
            "the stream and its gradients": 3 * self._stream_bytes + self._masks(1),
            f"what layers keep (memory={self.memory.residual})": self._kept_bytes(),
            "the head's share of the tied weight's gradient": self._waiting_bytes,
        }
        return self._peak(kept, moments)

    @abstractmethod
    def _attention_moment(self) -> int:
        """Differentiating the kernel of an attention layer, or what follows it."""

    @property
    def _stream_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def _inner_size(self) -> int:
        return int(self.config.intermediate_size)

    @property
    def _product_bytes(self) -> int:
        """What a projection gives, or a copy of the stream in low precision."""
        return self._positions * self._stream_size * self.product

    @property
    def _bases_bytes(self) -> int:
        """One number of each softmax."""
        return self._positions * int(self.config.num_attention_heads) * FP32

    def _masks(self, count: int) -> int:
        """Dropout masks of the stream's size."""
        dropped = self.config.hidden_dropout_prob
        return count * self._positions * self._stream_size if dropped else 0

    def _inputs(self, projections: int) -> int:
        """A layer's input, of which each projection keeps a copy in low precision instead."""
        return projections * self._product_bytes if self._half else self._stream_bytes

    def _stored_feed_forward(self) -> int:
        """Input, both sides of the activation, the norm's input."""
        inside = self._positions * self._inner_size * self.product
        twice = 1 if self.config.hidden_act == "relu" else 2
        return twice * inside + self._inputs(1) + self._stream_bytes + self._masks(1)
