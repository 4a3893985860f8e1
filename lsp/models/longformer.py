"""The Longformer (Beltagy et al., 2004.05150), bidirectional or causal.

Reading order: `Longformer.forward` → `LongformerModel` (embeddings, stack) → the two blocks of a
layer in `longformer_layers.py` → `layers/`. Module names are those of the published weights.
Letters of shapes are in `lsp/core/batch.py`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.batch import positions_from_segments
from lsp.core.errors import require
from lsp.models.layers.dropout import derive_seed, seeded_dropout
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.models.layers.fresh import normal_weights
from lsp.models.layers.losses import LanguageModelHead, tiled_loss
from lsp.models.layers.positions import repeat_rows
from lsp.models.layers.reversible import Drift, run_stack
from lsp.models.layers.sequential import run_blocks
from lsp.models.layers.tied import TiedEmbedding, WaitingGradient
from lsp.models.layers.trace import Trace
from lsp.models.longformer_config import LongformerConfig, residuals
from lsp.models.longformer_generation import LongformerCache, new_cache
from lsp.models.longformer_generation import step as generation_step
from lsp.models.longformer_layers import LongformerLayer, Memo, WindowAttention
from lsp.models.longformer_memory import Pass
from lsp.models.longformer_reversible import ReversibleLayer
from lsp.models.longformer_reversible_memory import ReversiblePass
from lsp.models.memory import MemoryConfig, as_if
from lsp.models.seeded import SeededModel


class LongformerEmbeddings(nn.Module):
    """Words, positions and token types, and the norm of their sum."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.word_embeddings = TiedEmbedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        position_ids_BL: torch.Tensor,
        padding_BL: torch.Tensor | None,
        token_type_ids_BL: torch.Tensor | None,
        seed: int | None,
    ) -> torch.Tensor:
        """From ids to the stream: (B, L, D). Padding has the position before the first."""
        place_BL = position_ids_BL + self.config.first_position
        if padding_BL is not None:
            place_BL = place_BL.masked_fill(padding_BL, self.config.first_position - 1)
        if token_type_ids_BL is None:
            token_type_ids_BL = torch.zeros_like(input_ids_BL)
        x_BLD = self.word_embeddings(input_ids_BL) + self.token_type_embeddings(token_type_ids_BL)
        x_BLD = self.LayerNorm(x_BLD + self.position_embeddings(place_BL))
        return seeded_dropout(x_BLD, self.config.hidden_dropout_prob, seed)


class LongformerEncoder(nn.Module):
    """The layers, and where they have two streams, the norm of what both came to.

    Attributes:
        trace: Looks on at the next passes; None for nobody.
    """

    def __init__(self, config: LongformerConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.drift = Drift()
        self.trace: Trace | None = None
        layer = ReversibleLayer if config.reversible else LongformerLayer
        self.layer = nn.ModuleList(
            layer(config, n, memory) for n in range(config.num_hidden_layers)
        )
        if config.reversible:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def blocks(self) -> list[Any]:
        """What the stream, or two of them, go through: an attention and a feed-forward in turns."""
        if self.config.reversible:
            return [block for layer in self.layer for block in layer.children()]
        return [block for layer in self.layer for block in (layer.attention, layer)]

    def forward(self, x_BLD: torch.Tensor, memos: list[Memo]) -> tuple[torch.Tensor, ...]:
        """The stream, or both of them, after the last layer: (B, L, D) each."""
        blocks, residual = self.blocks(), self.memory.residual
        if self.config.reversible:
            drift = self.drift if self.memory.measure_drift else None
            both = run_stack if self.trace is None else self.trace.run_stack
            return both(x_BLD, blocks, memos, residual=residual, drift=drift)
        run = run_blocks if self.trace is None else self.trace.run_blocks
        return (run(x_BLD, blocks, memos, recompute=residual != "stored"),)

    def join(self, *streams_BKD: torch.Tensor) -> torch.Tensor:
        """Hidden states of some positions: (B, K, D)."""
        if not self.config.reversible:
            return streams_BKD[0]
        first, second = streams_BKD
        hidden_BKD: torch.Tensor = self.LayerNorm((first + second) / 2)
        return hidden_BKD


class LongformerModel(nn.Module):
    """From token ids to the stream."""

    def __init__(self, config: LongformerConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.exchange: Exchange = WHOLE_ROWS
        self.embeddings = LongformerEmbeddings(config)
        self.encoder = LongformerEncoder(config, memory)

    def attentions(self) -> list[WindowAttention]:
        """First to last."""
        return cast(list[WindowAttention], self.encoder.blocks()[::2])

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        segment_ids_BL: torch.Tensor | None,
        position_ids_BL: torch.Tensor,
        global_BL: torch.Tensor | None,
        token_type_ids_BL: torch.Tensor | None,
        seed: int | None,
    ) -> tuple[torch.Tensor, ...]:
        """The streams after the last layer, one or two, which `encoder.join` makes one."""
        exchange = self.exchange
        first = exchange.first(input_ids_BL.shape[1])
        if segment_ids_BL is None and exchange.degree > 1:
            segment_ids_BL = torch.ones_like(input_ids_BL)

        def seed_of(*key: int) -> int | None:
            return None if seed is None else derive_seed(seed, *key)

        padding_BL = None if segment_ids_BL is None else segment_ids_BL == 0
        x_BLD = self.embeddings(
            input_ids_BL, position_ids_BL, padding_BL, token_type_ids_BL, seed_of(-1, first)
        )
        if segment_ids_BL is not None:
            segment_ids_BL = exchange.whole(segment_ids_BL)
        if global_BL is not None:
            global_BL = exchange.whole(global_BL.long()) != 0
        count = 2 * self.config.num_hidden_layers
        memos = [Memo(segment_ids_BL, global_BL, seed_of(n), first) for n in range(count)]
        streams: tuple[torch.Tensor, ...] = self.encoder(x_BLD, memos)
        return streams


class LongformerHead(nn.Module):
    """A dense layer, a norm, and the projection onto the vocabulary (RoBERTa, 1907.11692)."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = LanguageModelHead(config.hidden_size, config.vocab_size)

    def learned(self) -> list[torch.Tensor]:
        """What the loss is differentiated by."""
        before = [*self.dense.parameters(), *self.layer_norm.parameters()]
        return [*before, *self.decoder.learned()]

    def forward(
        self, hidden_BKD: torch.Tensor, labels_BK: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores (B, K, V), or with labels the summed loss."""
        hidden_BKD = self.layer_norm(F.gelu(self.dense(hidden_BKD)))
        if labels_BK is None:
            scores: torch.Tensor = self.decoder(hidden_BKD)
            return scores
        loss: torch.Tensor = self.decoder(hidden_BKD, labels_BK)[0]
        return loss


class Longformer(SeededModel):
    """A Longformer with its language-model head: causal where `is_decoder`, else bidirectional."""

    def __init__(self, config: LongformerConfig, memory: MemoryConfig | None = None) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.memory = (memory or MemoryConfig()).settled(residuals(config))
        self.longformer = LongformerModel(config, self.memory)
        self.lm_head = LongformerHead(config)
        self.apply(partial(normal_weights, std=config.initializer_range))
        if config.pad_token_id is not None:
            with torch.no_grad():
                self.longformer.embeddings.word_embeddings.weight[config.pad_token_id] = 0
        if config.tie_word_embeddings:
            embedding, decoder = self.longformer.embeddings.word_embeddings, self.lm_head.decoder
            decoder.weight = embedding.weight
            embedding.waiting = decoder.waiting = WaitingGradient()
        # Without global tokens nothing reads these projections, and no gradient would come.
        for attention in self.longformer.attentions():
            for parameter in attention.self.global_parameters():
                parameter.requires_grad = config.global_tokens > 0

    def repeat_positions(self, learned: int) -> tuple[str, ...]:
        table_PD = self.longformer.embeddings.position_embeddings.weight
        repeat_rows(table_PD[self.config.first_position :], learned)
        return ("longformer.embeddings.position_embeddings.weight",)

    def share_rows(self, exchange: Exchange) -> None:
        self.longformer.exchange = exchange
        for attention in self.longformer.attentions():
            attention.exchange = exchange

    def measure_drift(self, enabled: bool) -> None:
        self.memory.measure_drift = enabled

    def reversible_drift(self) -> float | None:
        error = self.longformer.encoder.drift.error
        return None if error is None else float(error)

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and number of predicted positions.

        Args:
            input_ids: (B, L) token ids.
            labels: (B, L) what each position predicts (already shifted), -100 for nothing.
            segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
            position_ids: (B, L) positions in the document; None for those that follow from
                `segment_ids`.
            global_attention_mask: (B, L) not 0 for tokens that see and are seen by all of their
                document; None for the first `global_tokens` of each.

        Raises:
            UserError: The length does not fit the dilations or the positions.
        """
        self.config.check_length(input_ids.shape[1] * self.longformer.exchange.degree)
        seed = self._take_seed()
        streams = self._streams(
            input_ids, segment_ids, position_ids, global_attention_mask, None, seed
        )
        encoder, head = self.longformer.encoder, self.lm_head

        def loss_of_tile(*tile: Any) -> torch.Tensor:
            *streams_BKD, labels_BK, _ = tile
            return head(encoder.join(*streams_BKD), labels_BK)

        norm = encoder.LayerNorm.parameters() if self.config.reversible else ()
        learned, waiting = [*norm, *head.learned()], head.decoder.waiting
        tiles = self._head_tiles(streams[0])
        return tiled_loss(loss_of_tile, streams, labels, tiles, learned, waiting)

    def _head_tiles(self, stream_BLD: torch.Tensor) -> int:
        rows, length, width = stream_BLD.shape
        vocabulary, device = self.config.vocab_size, stream_BLD.device.type
        return self.memory.head_tiles_for(rows, length, width, vocabulary, device)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last layer: (B, L, D), in evaluation of any length."""
        length, degree = input_ids.shape[1], self.longformer.exchange.degree
        if self.training:
            self.config.check_length(length * degree)
        else:
            self.config.check_positions(length * degree)
            input_ids, segment_ids, position_ids = self.padded(input_ids, segment_ids, position_ids)
        missing = input_ids.shape[1] - length
        if missing and global_attention_mask is not None:
            global_attention_mask = F.pad(global_attention_mask, (0, missing))
        if missing and token_type_ids is not None:
            token_type_ids = F.pad(token_type_ids, (0, missing))
        streams = self._streams(
            input_ids,
            segment_ids,
            position_ids,
            global_attention_mask,
            token_type_ids,
            self._take_seed(),
        )
        return self.longformer.encoder.join(*(x_BLD[:, :length] for x_BLD in streams))

    def padded(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Ids, segments and positions of a length that fits the dilations."""
        if position_ids is None:
            position_ids = self._positions(input_ids, segment_ids)
        missing = -input_ids.shape[1] % self.config.length_multiple
        if missing == 0 or self.longformer.exchange.degree > 1:
            return input_ids, segment_ids, position_ids
        if segment_ids is None:
            segment_ids = torch.ones_like(input_ids)
        ids, segments, positions = (
            F.pad(x_BL, (0, missing)) for x_BL in (input_ids, segment_ids, position_ids)
        )
        return ids, segments, positions

    def _positions(self, input_ids: torch.Tensor, segment_ids: torch.Tensor | None) -> torch.Tensor:
        assert self.longformer.exchange.degree == 1, "shares of a row come with their positions"
        if segment_ids is None:
            segment_ids = torch.ones_like(input_ids)
        return positions_from_segments(segment_ids)

    def logits(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of every position: (B, L, V)."""
        return self.lm_head(
            self.hidden_states(input_ids, segment_ids, position_ids, global_attention_mask)
        )

    def _streams(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        global_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        seed: int | None,
    ) -> tuple[torch.Tensor, ...]:
        config = self.config
        if position_ids is None:
            position_ids = self._positions(input_ids, segment_ids)
        if global_mask is None and config.global_tokens:
            global_mask = position_ids < config.global_tokens
        global_BL = None if global_mask is None else global_mask != 0
        if global_BL is not None:
            require(
                not config.is_decoder,
                "global_attention_mask lets a causal model see later tokens: leave it out",
            )
            if segment_ids is not None:
                global_BL = global_BL & (segment_ids != 0)
        return self.longformer(
            input_ids, segment_ids, position_ids, global_BL, token_type_ids, seed
        )

    def new_cache(self) -> LongformerCache:
        """An empty memory for `step`."""
        return new_cache(self)

    def step(self, input_ids: torch.Tensor, cache: LongformerCache) -> torch.Tensor:
        """Scores of the token after `input_ids`: see `longformer_generation.step`."""
        return generation_step(self, input_ids, cache)

    def execution_plan(self, rows: int, length: int) -> dict[str, int]:
        stream_BLD = self.like_stream(rows, length, self.config.hidden_size)
        plan = {"the head": self._head_tiles(stream_BLD)}
        for number, block in enumerate(self.longformer.encoder.blocks()):
            name = "feed_forward" if number % 2 else "attention"
            groups = len(block.groups(stream_BLD)) if self.config.reversible else 1
            plan[f"{name} {number // 2}"] = groups * len(block.tiles(stream_BLD))
        return plan

    def activation_bytes(
        self, rows: int, length: int, *, half: bool = False, memory: MemoryConfig | None = None
    ) -> dict[str, int]:
        with as_if(self.memory, memory and memory.settled(residuals(self.config))):
            return self._pass(rows, length, half).activation_bytes()

    def _pass(self, rows: int, length: int, half: bool) -> Pass:
        stream_BLD = self.like_stream(rows, length, self.config.hidden_size)
        attention, feed_forward, *_ = self.longformer.encoder.blocks()
        sizes: dict[str, Any] = {
            "config": self.config,
            "memory": dataclasses.replace(self.memory),
            "rows": rows,
            "length": length,
            "degree": self.longformer.exchange.degree,
            "attention_tiles": len(attention.tiles(stream_BLD)),
            "feed_forward_tiles": len(feed_forward.tiles(stream_BLD)),
            "head_tiles": self._head_tiles(stream_BLD),
            "device": stream_BLD.device,
            "stream": stream_BLD.element_size(),
            "product": 2 if half else stream_BLD.element_size(),
        }
        if not self.config.reversible:
            return Pass(**sizes)
        groups = attention.groups(stream_BLD)
        sizes |= {"groups": len(groups), "heads": max(g.stop - g.start for g in groups)}
        return ReversiblePass(**sizes)

    def flops_per_token(self, sequence_length: int) -> float:
        """See `LanguageModel`; attention counts the keys of a window."""
        config = self.config
        embeddings = sum(p.numel() for p in self.longformer.embeddings.parameters())
        weights = sum(p.numel() for p in self.parameters() if p.requires_grad) - embeddings
        if config.tie_word_embeddings:
            weights += config.vocab_size * config.hidden_size
        keys = sum(min(sequence_length, window + 1) for window in config.windows)
        return 6.0 * weights + 12.0 * keys * config.hidden_size
