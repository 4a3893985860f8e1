"""How much memory a training pass of NEZHA takes beside its weights, from its shapes.

An estimate of the peak: what is kept from the forward to the backward pass, and the largest of
what exists for a moment on top of it. The terms follow `layers/sequential.py`,
`layers/clipped_attention.py` and `layers/losses.py`; a test compares them with what torch
allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from lsp.models.layers.sight import largest_block
from lsp.models.nezha_config import NezhaConfig
from lsp.models.passes import FP32, BertPass

PROJECTIONS = 3


@dataclass(frozen=True, kw_only=True)
class Pass(BertPass):
    """A micro-batch on its way through the model.

    Attributes:
        config: Of the model.
    """

    config: NezhaConfig

    def _kept_bytes(self) -> int:
        """What is kept of all layers, but for the inputs of the last feed-forward and the head."""
        layers = self.config.num_hidden_layers
        if not self._stored:
            return (2 * layers - 1) * self._stream_bytes
        matrices = 4 * self.config.hidden_size**2
        matrices += 2 * self.config.hidden_size * self.config.intermediate_size
        copies = self.product * matrices if self._half else 0
        return layers * (self._stored_attention() + self._stored_feed_forward() + copies)

    def _stored_attention(self) -> int:
        """Input, projections, what attention gave, the norm's input."""
        kept = (PROJECTIONS + 1) * self._product_bytes + self._bases_bytes
        return kept + self._inputs(PROJECTIONS) + self._stream_bytes + self._masks(1)

    def _attention_moment(self) -> int:
        """Differentiating the kernel of an attention layer, or what follows it."""
        product = self._product_bytes
        kernel = self._kernel_bytes()
        # Gradients of the output and of the projections.
        grads = (PROJECTIONS + 1) * product
        if self.degree > 1:  # on both sides of the exchange
            grads += PROJECTIONS * product
        if self._stored:
            freed = self._stored_feed_forward() + self._stream_bytes
            return grads + kernel - freed
        again = (PROJECTIONS + 1) * product + self._bases_bytes
        if self._half:
            copies = PROJECTIONS * self.config.hidden_size**2 * self.product
            again += PROJECTIONS * product + self.attention_tiles * copies
        tile = self._stream_bytes // self.attention_tiles
        # The sum and its norm, their gradients, and what the dropout or the product passes on.
        after = product + 4 * tile + product // self.attention_tiles
        return again + max(grads + kernel, after)

    def _kernel_bytes(self) -> int:
        """Buffers of the kernel: some heads of a row, and a block of scores."""
        config, length = self.config, self.length * self.degree
        heads = max(1, config.num_attention_heads // self.degree)
        block = largest_block(length, 0, None, heads, self.device)
        places = 2 * config.max_relative_position + 1
        # Gradients of queries, keys and values of these heads.
        buffers = 3 * block.heads * length * config.head_size * FP32
        queries = block.heads * block.queries
        scores = queries * block.keys
        buffers += 2 * scores * FP32
        near = min(block.keys, block.queries + places - 2)
        buffers += queries * (block.queries + near - 1) * FP32
        if config.attention_probs_dropout_prob:  # what is kept, how it is drawn, and the draws
            buffers += scores * (2 * FP32 + 2)
        # What queries and gradients have with the table, and sums by relative position.
        buffers += 3 * queries * places * FP32
        if self._half:  # scores, and what the products with the table are cast from and to
            buffers += scores * self.product + 3 * queries * places * self.product
            buffers += block.heads * (block.keys + block.queries) * config.head_size * self.product
        return buffers

    @property
    def _head_streams(self) -> int:
        # A rectifier is differentiated by its output, other activations by their input too.
        return 4 if self.config.hidden_act == "relu" else 5
