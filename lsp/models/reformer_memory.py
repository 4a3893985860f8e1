"""How much memory a training pass of the Reformer takes beside its weights, from its shapes alone.

An estimate of the peak: what is kept from the forward to the backward pass, and the largest of
what exists for a moment on top of it. The terms follow `layers/reversible.py`, both kernels of
attention and `layers/losses.py`; a test compares them with what torch allocates.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from lsp.models.layers.chunks import Window, block_sizes
from lsp.models.layers.lsh import bucket_dtype
from lsp.models.passes import FP32, ModelPass
from lsp.models.reformer_config import ReformerConfig

INT64 = 8


@dataclass(frozen=True, kw_only=True)
class Pass(ModelPass):
    """A micro-batch on its way through the model.

    Attributes:
        config: Of the model.
        heads: Heads of the largest group of each layer's attention.
        groups: Number of those groups, of each layer.
    """

    config: ReformerConfig
    heads: tuple[int, ...]
    groups: tuple[int, ...]

    def activation_bytes(self) -> dict[str, int]:
        """Bytes by what they are for; their sum is the estimate of the peak."""
        attention = [
            self._attention_moment(kind, heads)
            for kind, heads in zip(self.config.attn_layers, self.heads, strict=True)
        ]
        moments = {
            "a group of attention heads": max(attention),
            "a tile of the feed-forward layer": self._feed_forward_moment(),
            "a tile of the language-model head": self._head_moment(),
        }
        kept = {
            "the two streams and their gradients": 4 * self._stream_bytes,
            f"what layers keep (memory={self.memory.residual})": self._kept_bytes(),
            "hash buckets": self._bucket_bytes(),
        }
        return self._peak(kept, moments)

    @property
    def _stream_size(self) -> int:
        return self.config.hidden_size

    @property
    def _normalised_bytes(self) -> int:
        """A layer norm's output, with its copy in low precision where products are."""
        copy = self.product if self.product < self.stream else 0
        return self._positions * self.config.hidden_size * (self.stream + copy)

    def _kept_bytes(self) -> int:
        layers = self.config.num_hidden_layers
        if self.memory.residual == "reversible":
            return 0
        if self.memory.residual == "recomputed":
            return (2 * layers - 2) * self._stream_bytes  # the last two are the final streams
        return sum(
            self._stored_attention(kind, groups) + self._stored_feed_forward()
            for kind, groups in zip(self.config.attn_layers, self.groups, strict=True)
        ) - (2 * self._stream_bytes)

    def _stored_attention(self, kind: str, groups: int) -> int:
        """What autograd keeps of a layer's attention, with the stream that it added to."""
        config = self.config
        width = config.num_attention_heads * config.attention_head_size
        whole = self._positions * width * self.product
        # Two projections, the output as the kernel has it and with its heads side by side; or
        # three and the latter. Per group the normalised input and the output's dropout mask.
        kept = 4 * whole
        kept += groups * (self._normalised_bytes + self._mask_bytes(config.hidden_size))
        return kept + self._softmax_bytes(kind, config.num_attention_heads) + self._stream_bytes

    def _stored_feed_forward(self) -> int:
        config = self.config
        inside = self._positions * config.feed_forward_size * self.product
        twice = 1 if config.hidden_act == "relu" else 2
        masks = self._mask_bytes(config.feed_forward_size) + self._mask_bytes(config.hidden_size)
        return twice * inside + masks + self._normalised_bytes + self._stream_bytes

    def _mask_bytes(self, width: int) -> int:
        return self._positions * width if self.config.hidden_dropout_prob else 0

    def _softmax_bytes(self, kind: str, heads: int) -> int:
        """What the kernel keeps of each softmax: the order (LSH), base and share."""
        rounds = self.config.num_hashes if kind == "lsh" else 1
        return self._positions * heads * rounds * FP32 * (3 if kind == "lsh" else 2)

    def _bucket_bytes(self) -> int:
        config = self.config
        layers = config.attn_layers.count("lsh")
        if not layers or self.length * self.degree <= config.lsh_attn_chunk_length:
            return 0
        factors = config.num_buckets
        assert factors is not None, "chosen when the model is built for a length"
        size = bucket_dtype(factors if isinstance(factors, int) else prod(factors)).itemsize
        heads = config.num_attention_heads * config.num_hashes
        return layers * self._positions * heads * size

    def _attention_moment(self, kind: str, heads: int) -> int:
        """Differentiating the attention of a group of heads, at its peak."""
        config = self.config
        size = config.attention_head_size
        group = self._positions * heads * size * self.product
        projections = 2 if kind == "lsh" else 3
        moment = (projections + 1) * group + self._kernel_bytes(kind, heads)
        if self.degree > 1:  # on both sides of the exchange
            moment += projections * group
        if self._stored:  # the layer above has been freed by then
            return moment - self._stored_feed_forward()
        # What the kernel keeps: the projections, LSH attention also its output.
        moment += (3 * group) + self._softmax_bytes(kind, heads)
        # The normalised input, and the gradients of the weights: what is added up, and a piece.
        weights = (projections + 1) * config.hidden_size * config.num_attention_heads * size
        return moment + self._normalised_bytes + 2 * FP32 * weights

    def _kernel_bytes(self, kind: str, heads: int) -> int:
        """Buffers of the kernel: some heads of one row, and one block of scores."""
        config, length = self.config, self.length * self.degree
        chunk = getattr(config, f"{kind}_attn_chunk_length")
        before = getattr(config, f"{kind}_num_chunks_before")
        after = getattr(config, f"{kind}_num_chunks_after")
        window = Window(chunk, before, after) if length > chunk else Window(length, 0, 0)
        chunks = length // window.chunk_length
        at_once, per_block = block_sizes(self.device, heads, chunks, window)
        row = at_once * length
        size = config.attention_head_size
        if kind == "lsh":
            rounds = config.num_hashes if length > chunk else 1
            # Inputs side by side, their gradients in both orders; indices of every round.
            buffers = row * 2 * size * (self.product + 2 * FP32) + row * rounds * 6 * INT64
        else:
            buffers = row * size * 2 * (self.product + FP32)
        queries = at_once * per_block * window.chunk_length
        scores = queries * window.size
        dropout = getattr(config, f"{kind}_attention_probs_dropout_prob")
        buffers += scores * (2 * FP32 + (2 * FP32 + 2 if dropout else 0))
        buffers += scores * (self.product if self.product < FP32 else 0)
        keys = at_once * per_block * window.size
        copies = 2 if at_once == 1 and self.product == FP32 else 4
        return buffers + (copies * keys + 4 * queries) * size * self.product

    def _feed_forward_moment(self) -> int:
        config = self.config
        if self._stored:
            return self._positions * config.feed_forward_size * self.product
        tile = self._tile(self.feed_forward_tiles)
        # What the activation gave and its gradient; the dropout mask and its random numbers.
        inside = tile * config.feed_forward_size * (2 * self.product + 3)
        weights = 2 * config.hidden_size * config.feed_forward_size
        return inside + tile * config.hidden_size * 4 * self.stream + 2 * FP32 * weights

    def _head_moment(self) -> int:
        config = self.config
        tile = self._tile(self.head_tiles)
        scores = tile * config.vocab_size
        weights = 2 * FP32 * 2 * config.hidden_size * config.vocab_size
        # Scores, their logarithms and gradients; later the last two, and the weights' gradients,
        # those of this tile and of those before. Both streams are joined and normalised.
        largest = max(scores * (2 * FP32 + self.product), scores * 2 * FP32 + weights)
        return largest + tile * 2 * config.hidden_size * 4 * self.stream
