"""What the estimates of a training pass's memory have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

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
        attention_tiles: Of what attention does position by position.
    """

    attention_tiles: int

    @property
    @abstractmethod
    def _inner_size(self) -> int:
        """Numbers of a position inside the feed-forward layer."""

    def _feed_forward_moment(self) -> int:
        weights = 2 * FP32 * 2 * self._stream_size * self._inner_size
        if self._stored:
            return self._positions * self._inner_size * self.product + weights // 4
        tile = self._tile(self.feed_forward_tiles)
        inside = tile * self._inner_size * 3 * self.product
        outside = tile * self._stream_size * 4 * self.stream
        return self._stream_bytes + inside + outside + weights
