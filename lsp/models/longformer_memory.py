"""How much memory a training pass of the Longformer takes beside its weights, from its shapes.

An estimate of the peak: what is kept from the forward to the backward pass, and the largest of
what exists for a moment on top of it. The terms follow `layers/sequential.py`,
`layers/sliding_window.py` and `layers/losses.py`; a test compares them with what torch allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from lsp.models.layers.chunks import Window, block_sizes
from lsp.models.layers.sliding_window import Span
from lsp.models.longformer_config import LongformerConfig
from lsp.models.passes import FP32, BertPass


@dataclass(frozen=True, kw_only=True)
class Pass(BertPass):
    """A micro-batch on its way through the model.

    Attributes:
        config: Of the model.
    """

    config: LongformerConfig

    @property
    def _projections(self) -> int:
        return 5 if self.config.global_tokens else 3

    @property
    def _padded(self) -> bool:
        """Whether rows are copied, to be a whole number of chunks."""
        return self.length * self.degree % self._window.chunk_length > 0

    @property
    def _window(self) -> Window:
        """The chunks that the widest window reaches."""
        reach, last = max(self.config.windows), self.length * self.degree - 1
        if self.config.is_decoder:
            return Span(min(reach, last), 0).window()
        return Span(min(reach // 2, last), min(reach // 2, last)).window()

    @property
    def _heads_at_once(self) -> int:
        return self.config.num_attention_heads

    def _kept_bytes(self) -> int:
        """What is kept of all layers, but for the inputs of the last feed-forward and the head."""
        layers = self.config.num_hidden_layers
        if not self._stored:
            return (2 * layers - 1) * self._stream_bytes
        weights = 4 + (3 if self.config.global_tokens else 0)
        matrices = weights * self.config.hidden_size**2
        matrices += 2 * self.config.hidden_size * self.config.intermediate_size
        copies = self.product * matrices if self._half else 0
        return layers * (self._stored_attention() + self._stored_feed_forward() + copies)

    def _stored_attention(self) -> int:
        """Input, projections, what windows and what global tokens gave, the norm's input."""
        outputs = 1 + (self.config.global_tokens > 0) + self._padded
        kept = (self._projections + outputs) * self._product_bytes + self._bases_bytes
        return kept + self._inputs(self._projections) + self._stream_bytes + self._masks(1)

    def _attention_moment(self) -> int:
        """Differentiating the kernel of an attention layer, or what follows it."""
        product, config = self._product_bytes, self.config
        kernel = self._kernel_bytes()
        # Gradients of the output and of the projections.
        grads = (self._projections + 1) * product
        if config.global_tokens:
            grads += 2 * product  # the output's gradient without global tokens, that of queries
        if self.degree > 1:  # on both sides of the exchange
            grads += self._projections * product
        if self._stored:
            freed = self._stored_feed_forward() + self._stream_bytes
            return grads + kernel - freed
        again = (self._projections + 1) * product + self._bases_bytes
        if self._padded:  # queries, keys and values, and the output's gradient
            again += 4 * product
        if self._half:
            copies = self._projections * config.hidden_size**2 * self.product
            again += self._projections * product + self.attention_tiles * copies
        tile = self._stream_bytes // self.attention_tiles
        # The sum and its norm, their gradients, and what the dropout or the product passes on.
        after = product + 4 * tile + product // self.attention_tiles
        if config.global_tokens:
            after += product
        return again + max(grads + kernel, after)

    def _kernel_bytes(self) -> int:
        """Buffers of the kernel for the widest window: a head of a row, and a block of scores."""
        config, window, length = self.config, self._window, self.length * self.degree
        size = config.hidden_size // config.num_attention_heads
        chunks = -(-length // window.chunk_length)
        at_once, per_block = block_sizes(
            self.device, max(1, self._heads_at_once // self.degree), chunks, window
        )
        ring = at_once * (chunks * window.chunk_length + window.outer)
        buffers = ring * size * 2 * (self.product + FP32)
        queries = at_once * per_block * window.chunk_length
        scores = queries * window.size
        dropped = config.attention_probs_dropout_prob
        buffers += scores * (2 * FP32 + (2 * FP32 + 2 if dropped else 0))
        if self.product < FP32:  # scores, and three times what queries have, in both types
            buffers += scores * self.product + 3 * queries * size * FP32
        keys = at_once * per_block * window.size
        copies = 2 if at_once == 1 and self.product == FP32 else 4
        return buffers + (copies * keys + 3 * queries) * size * self.product

    @property
    def _head_streams(self) -> int:
        return 5

    def _embedding_moment(self) -> int:
        """The gradients of both tables, when layers keep nothing any more."""
        positions = self.config.max_position_embeddings * self.config.hidden_size
        return super()._embedding_moment() + FP32 * positions
