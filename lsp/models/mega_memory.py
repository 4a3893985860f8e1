"""How much memory a training pass of Mega takes beside its weights, from its shapes.

An estimate of the peak: what is kept from the forward to the backward pass, and the largest of
what exists for a moment on top of it. How often a tensor of each width is there was counted in
`layers/staged.py` with `mega_layers.py`; a test compares the sums with what torch allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from lsp.models.layers.group_attention import CPU_SCORES, GPU_SCORES, QUERIES
from lsp.models.mega_config import MegaConfig
from lsp.models.passes import SequentialPass


@dataclass(frozen=True, kw_only=True)
class Pass(SequentialPass):
    """A micro-batch on its way through the model.

    Attributes:
        config: Of the model.
    """

    config: MegaConfig

    def activation_bytes(self) -> dict[str, int]:
        """Bytes by what they are for; their sum is the estimate of the peak."""
        moments = {
            "averages and attention": self._attention_moment(),
            "a tile of the feed-forward layer": self._feed_forward_moment(),
            "a tile of the language-model head": self._head_moment(),
            "the gradients of the embedding": self._embedding_moment(),
        }
        kept = {
            "the stream and its gradients": 2 * self._stream_bytes,
            f"what layers keep (memory={self.memory.residual})": self._kept_bytes(),
            "the head's share of the tied weight's gradient": self._waiting_bytes,
        }
        return self._peak(kept, moments)

    @property
    def _stream_size(self) -> int:
        return self.config.hidden_size

    @property
    def _inner_size(self) -> int:
        return self.config.nffn_hidden_size

    @property
    def _drops(self) -> bool:
        config = self.config
        return max(config.dropout_prob, config.hidden_dropout_prob) > 0

    def _kept_bytes(self) -> int:
        """What is kept of all layers, but for the inputs of the last block and the head."""
        config = self.config
        if not self._stored:
            blocks = 2 if config.use_normalized_ffn else 1
            return (blocks * config.num_hidden_layers - 1) * self._stream_bytes
        masks = 1 if self._drops else 0
        # Norms, averages and sums are in full precision, what matrices give is in half.
        stream = self._positions * config.hidden_size * (7 * self.stream + 4 * self.product)
        stream += 2 * self._positions * config.hidden_size * masks
        inner = self._positions * config.intermediate_size * (6 * self.product + masks)
        small = self._positions * config.shared_representation_size * 4 * self.product
        kept = stream + inner + small
        if config.use_normalized_ffn:
            kept += self._positions * config.nffn_hidden_size * (2 * self.product + masks)
            kept += self._positions * config.hidden_size * (4 * self.stream + masks)
        return config.num_hidden_layers * kept

    @property
    def _scores(self) -> int:
        """Numbers of a piece of attention."""
        config = self.config
        keys = min(self.length, config.chunk_size) if config.use_chunking else self.length
        chunks = -(-self._positions // keys)
        one = min(QUERIES, keys) * keys
        budget = CPU_SCORES if self.device.type == "cpu" else GPU_SCORES
        return min(chunks, max(1, budget // one)) * one

    def _attention_moment(self) -> int:
        """Differentiating attention, when what precedes it has been evaluated again."""
        config, count = self.config, self._positions
        scores = (
            (3 if config.attention_probs_dropout_prob == 0 else 4) * self._scores * self.product
        )
        if self._stored:
            return scores
        copies = 1 if self.attention_tiles > 1 else 0
        masks = 1 if self._drops else 0
        stream = (
            count * config.hidden_size * ((9 + copies) * self.stream + masks * (self.product + 1))
        )
        inner = count * config.intermediate_size * (2 * self.stream + 5.5 * self.product + masks)
        small = count * config.shared_representation_size * 7 * self.stream
        return int(stream + inner + small) + scores

    @property
    def _head_streams(self) -> int:
        return 3
