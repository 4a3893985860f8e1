"""How much memory a training pass of a reversible Longformer takes beside its weights.

As `longformer_memory.py`, for the two streams of `layers/reversible.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lsp.models.longformer_memory import Pass
from lsp.models.passes import FP32


@dataclass(frozen=True, kw_only=True)
class ReversiblePass(Pass):
    """A micro-batch on its way through a model of two streams.

    Attributes:
        heads: Of the largest group that attends at once.
        groups: Number of those groups.
    """

    heads: int
    groups: int

    def activation_bytes(self) -> dict[str, int]:
        moments = {
            "a group of attention heads": self._attention_moment(),
            "a tile of the feed-forward layer": self._feed_forward_moment(),
            "a tile of the language-model head": self._head_moment(),
            "the gradients of the embeddings": self._embedding_moment(),
        }
        # The input of the embeddings' norm, and the mask of its dropout.
        kept = {
            "the two streams and their gradients": 5 * self._stream_bytes + self._masks(1),
            f"what layers keep (memory={self.memory.residual})": self._kept_bytes(),
            "the head's share of the tied weight's gradient": self._waiting_bytes,
        }
        return self._peak(kept, moments)

    @property
    def _heads_at_once(self) -> int:
        return self.heads

    @property
    def _group_bytes(self) -> int:
        """What a projection onto a group of heads gives."""
        return self._product_bytes * self.heads // self.config.num_attention_heads

    def _kept_bytes(self) -> int:
        layers = self.config.num_hidden_layers
        if self.memory.residual == "reversible":
            return 0
        if not self._stored:
            return (2 * layers - 2) * self._stream_bytes  # the last two are the final streams
        weights = 4 + (3 if self.config.global_tokens else 0)
        matrices = weights * self.config.hidden_size**2
        matrices += 2 * self.config.hidden_size * self.config.intermediate_size
        copies = self.product * matrices if self._half else 0
        kept = self._stored_attention() + self._stored_feed_forward() + copies
        return layers * kept - 2 * self._stream_bytes

    def _stored_attention(self) -> int:
        """Per group the normed input and the output's mask; projections, outputs, the stream."""
        outputs = 2 + (self.config.global_tokens > 0) + self._padded
        kept = (self._projections + outputs) * self._product_bytes + self._bases_bytes
        kept += self.groups * (self._inputs(self._projections) + self._masks(1))
        return kept + self._stream_bytes

    def _attention_moment(self) -> int:
        """Differentiating a group of heads, at its peak."""
        config, group = self.config, self._group_bytes
        grads = (self._projections + 1) * group
        if config.global_tokens:
            grads += 2 * group
        if self.degree > 1:  # on both sides of the exchange
            grads += self._projections * group
        kernel = self._kernel_bytes()
        if self._stored:
            return grads + kernel - self._stored_feed_forward()
        bases = self._positions * self.heads * FP32
        # The projections, what windows and global tokens gave, the normed input of every tile.
        again = (self._projections + 1 + (config.global_tokens > 0)) * group + bases
        again += self._inputs(self._projections)
        if self._padded:
            again += 4 * group
        share = self.heads / config.num_attention_heads
        weights = int((self._projections + 1) * config.hidden_size**2 * share)
        if self._half:
            again += self.attention_tiles * weights * self.product
        return again + max(grads + kernel, 2 * group + 2 * FP32 * weights)

    def _feed_forward_moment(self) -> int:
        return super()._feed_forward_moment() - (0 if self._stored else self._stream_bytes)

    def _head_moment(self) -> int:
        return super()._head_moment() - (0 if self._stored else self._stream_bytes)
