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
from lsp.models.passes import FP32, SequentialPass

PROJECTIONS = 3


@dataclass(frozen=True, kw_only=True)
class Pass(SequentialPass):
    """A micro-batch on its way through the model.

    Attributes:
        config: Of the model.
    """

    config: NezhaConfig

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

    @property
    def _stream_size(self) -> int:
        return self.config.hidden_size

    @property
    def _inner_size(self) -> int:
        return self.config.intermediate_size

    @property
    def _product_bytes(self) -> int:
        """What a projection gives, or a copy of the stream in low precision."""
        return self._positions * self.config.hidden_size * self.product

    @property
    def _waiting_bytes(self) -> int:
        table = self.config.vocab_size * self.config.hidden_size
        return FP32 * table if self.config.tie_word_embeddings else 0

    def _masks(self, count: int) -> int:
        """Dropout masks of the stream's size."""
        dropped = self.config.hidden_dropout_prob
        return count * self._positions * self.config.hidden_size if dropped else 0

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

    def _stored_feed_forward(self) -> int:
        """Input, both sides of the activation, the norm's input."""
        config = self.config
        inside = self._positions * config.intermediate_size * self.product
        twice = 1 if config.hidden_act == "relu" else 2
        return twice * inside + self._inputs(1) + self._stream_bytes + self._masks(1)

    def _inputs(self, projections: int) -> int:
        """A layer's input, of which each projection keeps a copy in low precision instead."""
        return projections * self._product_bytes if self._half else self._stream_bytes

    @property
    def _bases_bytes(self) -> int:
        """One number of each softmax."""
        return self._positions * self.config.num_attention_heads * FP32

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

    def _head_moment(self) -> int:
        config = self.config
        tile = self._tile(self.head_tiles)
        scores = tile * config.vocab_size
        weights = config.hidden_size * config.vocab_size
        # Scores, their logarithms and gradients; later the last, and the weight's gradient.
        largest = max(scores * (2 * FP32 + self.product), scores * FP32 + FP32 * weights)
        if not config.tie_word_embeddings and self.head_tiles > 1:
            largest += FP32 * weights  # of the tiles before
        # A rectifier is differentiated by its output, other activations by their input too.
        inside = tile * config.hidden_size * (4 if config.hidden_act == "relu" else 5) * self.stream
        inputs = 0 if self._stored else self._stream_bytes
        return inputs + largest + inside

    def _embedding_moment(self) -> int:
        """The gradient of the table of words, when layers keep nothing any more."""
        return FP32 * self.config.vocab_size * self.config.hidden_size - self._kept_bytes()
