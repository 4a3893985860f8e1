"""How much memory a training pass of Transformer-XL takes beside its weights, from its shapes.

An estimate of the peak: what is kept from the forward to the backward pass, what is remembered,
and the largest of what exists for a moment on top of it. The terms follow `layers/sequential.py`,
`layers/relative_attention.py` and `layers/losses.py`; a test compares them with what torch
allocates.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from lsp.models.layers.sight import largest_block
from lsp.models.passes import FP32, SequentialPass
from lsp.models.transformer_xl_config import RELATIVE, TransformerXLConfig


@dataclass(frozen=True, kw_only=True)
class Pass(SequentialPass):
    """A micro-batch on its way through the model, with as long a memory as it can have.

    Attributes:
        config: Of the model.
        mem_len: Positions that are remembered.
        head_scores: The most scores of a position.
    """

    config: TransformerXLConfig
    mem_len: int
    head_scores: int

    def activation_bytes(self) -> dict[str, int]:
        """Bytes by what they are for; their sum is the estimate of the peak."""
        moments = {
            "attention": self._attention_moment(),
            "a tile of the feed-forward layer": self._feed_forward_moment(),
            "a tile of the language-model head": self._head_moment(),
            "the gradients of the embedding": self._embedding_moment(),
        }
        kept = {
            "the stream and its gradients": 2 * self._stream_bytes + self._masks(1),
            "what is remembered, before and after": 2 * self._remembered_bytes,
            "distances": self._places_bytes,
            f"what layers keep (memory={self.memory.residual})": self._kept_bytes(),
            "the head's share of the tied weights' gradients": self._waiting_bytes,
        }
        return self._peak(kept, moments)

    @property
    def _stream_size(self) -> int:
        return self.config.d_model

    @property
    def _inner_size(self) -> int:
        return self.config.d_inner

    @property
    def _width(self) -> int:
        """Of all heads side by side."""
        return self.config.n_head * self.config.d_head

    @property
    def _product_bytes(self) -> int:
        """What one of three projections gives."""
        return self._positions * self._width * self.product

    @property
    def _keys(self) -> int:
        return self.mem_len + self.length * self.degree

    @property
    def _remembered_bytes(self) -> int:
        slots = self.rows * self.mem_len
        return slots * (self.config.n_layer * self.config.d_model * self.stream + 8)

    @property
    def _distances(self) -> int:
        """How many of them there are."""
        config, count = self.config, self._keys
        reach = config.reach(self.mem_len)
        if reach is not None:
            count = min(count, reach + 1)
        return min(count, config.clamp_len + 1) if config.clamp_len > 0 else count

    @property
    def _places_bytes(self) -> int:
        if self.config.attn_type != RELATIVE:
            return 0
        return self._distances * self.config.d_model * self.stream

    @property
    def _embedding_weights(self) -> int:
        config = self.config
        found = 0
        for number, (first, stop) in enumerate(pairwise([0, *config.cluster_ends])):
            narrow = config.d_embed // config.div_val**number
            found += (stop - first) * narrow
            if config.div_val > 1:
                found += config.d_model * narrow
        return found

    @property
    def _beside_bytes(self) -> int:
        """Keys and values of the memory, and the distances, of one layer."""
        config, width = self.config, self._width // self.degree
        found = 2 * self.rows * self.mem_len * width * self.product
        if config.relative:
            found += self._distances * width * self.product
        return found

    def _masks(self, count: int) -> int:
        """Dropout masks of the stream's size."""
        dropped = self.config.dropout
        return count * self._positions * self.config.d_model if dropped else 0

    def _kept_bytes(self) -> int:
        """What is kept of all layers, but for the inputs of the last feed-forward and the head."""
        layers, config = self.config.n_layer, self.config
        if not self._stored:
            return (2 * layers - 1) * self._stream_bytes
        matrices = 5 * config.d_model * self._width + 2 * config.d_model * config.d_inner
        copies = self.product * matrices if self._half else 0
        return layers * (self._stored_attention() + self._stored_feed_forward() + copies)

    def _stored_attention(self) -> int:
        """Input, projections, what attention gave, the norm's input, the memory's."""
        kept = 4 * self._product_bytes + self._bases_bytes + self._beside_bytes
        return kept + self._input_bytes + self._stream_bytes + self._masks(1)

    def _stored_feed_forward(self) -> int:
        """Input, what the ReLU gave, the norm's input."""
        config = self.config
        inside = self._positions * config.d_inner * (self.product + (1 if config.dropout else 0))
        if config.dropout:
            inside += self._positions * config.d_inner * self.product
        return inside + self._input_bytes + self._stream_bytes + self._masks(1)

    @property
    def _input_bytes(self) -> int:
        """What a projection reads: its input, or a copy of it in low precision."""
        return self._positions * self.config.d_model * self.product

    @property
    def _bases_bytes(self) -> int:
        """One number of each softmax."""
        return self._positions * self.config.n_head * FP32

    def _attention_moment(self) -> int:
        """Differentiating the kernel of an attention layer, or what follows it."""
        product = self._product_bytes
        kernel = self._kernel_bytes()
        # Gradients of the output and of what is mixed.
        grads = 4 * product + self._beside_bytes
        if self.degree > 1:  # on both sides of the exchange
            grads += 3 * product
        if self._stored:
            freed = self._stored_feed_forward() + self._stream_bytes
            return grads + kernel - freed
        again = 4 * product + self._bases_bytes + self._beside_bytes + self._stream_bytes
        if self._half:
            # Inputs of projections, and copies of their weights.
            width = self.config.d_model
            again += self._positions * width * self.product + 2 * self.rows * self.mem_len * width
            again += (self.attention_tiles * 3 + 3) * width * self._width * self.product
        if self.config.pre_lnorm:
            again += (
                self._stream_bytes + self.rows * self.mem_len * self.config.d_model * self.stream
            )
        tile = self._stream_bytes // self.attention_tiles
        after = product + 4 * tile + product // self.attention_tiles
        return again + max(grads + kernel, after)

    def _kernel_bytes(self) -> int:
        """Buffers of the kernel: a head of a row, and a block of scores."""
        config, size = self.config, self.config.d_head
        block = largest_block(
            self.length * self.degree,
            self.mem_len,
            config.reach(self.mem_len),
            config.n_head // self.degree,
            self.device,
        )
        keys = block.heads * self._keys
        buffers = 2 * keys * size * (self.product + FP32)  # keys, values and their gradients
        buffers += block.heads * self.length * self.degree * size * self.product  # of queries
        scores = block.heads * block.queries * block.keys
        copies = 2 + (2 if config.dropatt else 0)
        buffers += scores * copies * FP32
        if self.product < FP32:
            buffers += scores * self.product + 2 * keys * size * FP32 // 4
        if config.dropatt:
            buffers += 2 * scores
        if config.relative:
            wide = block.heads * block.queries * (block.keys + block.queries)
            buffers += wide * self.product
            buffers += block.heads * (self._keys + block.queries) * size * (self.product + FP32)
        return buffers + 6 * block.heads * block.queries * size * self.product

    @property
    def _head_scores(self) -> int:
        return self.head_scores

    @property
    def _head_streams(self) -> int:
        return 3 if self.config.dropout else 2
