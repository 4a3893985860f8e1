"""NEZHA (Wei et al., 1909.00204): a BERT that knows where tokens are relative to each other.

Reading order: `Nezha.forward` → `NezhaModel` (embeddings, stack) → the two blocks of a layer in
`nezha_layers.py` → `layers/clipped_attention.py`; what it is pretrained with is in
`nezha_heads.py`. Module names are those of the published weights. Letters of shapes are in
`lsp/core/batch.py`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.models.layers.chunks import documents
from lsp.models.layers.dropout import derive_seed, seeded_dropout
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.models.layers.fresh import normal_weights
from lsp.models.layers.losses import tiled_loss
from lsp.models.layers.sequential import Block, run_blocks
from lsp.models.layers.sight import make_sight
from lsp.models.layers.tied import TiedEmbedding, WaitingGradient
from lsp.models.layers.trace import Trace
from lsp.models.memory import MemoryConfig, as_if
from lsp.models.nezha_config import RESIDUALS, NezhaConfig
from lsp.models.nezha_generation import NezhaCache, new_cache
from lsp.models.nezha_generation import step as generation_step
from lsp.models.nezha_heads import Heads, Pooler, Predictions, pairs_loss
from lsp.models.nezha_layers import Attention, Memo, NezhaLayer
from lsp.models.nezha_memory import Pass
from lsp.models.seeded import SeededModel


class NezhaEmbeddings(nn.Module):
    """Words and token types, and the norm of their sum; positions are attention's business."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.dropout = config.hidden_dropout_prob
        self.word_embeddings = TiedEmbedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        token_type_ids_BL: torch.Tensor | None = None,
        seed: int | None = None,
    ) -> torch.Tensor:
        """From ids to the stream: (B, L, D)."""
        if token_type_ids_BL is None:
            token_type_ids_BL = torch.zeros_like(input_ids_BL)
        x_BLD = self.word_embeddings(input_ids_BL) + self.token_type_embeddings(token_type_ids_BL)
        return seeded_dropout(self.LayerNorm(x_BLD), self.dropout, seed)


class NezhaEncoder(nn.Module):
    """The layers.

    Attributes:
        trace: Looks on at the next passes; None for nobody.
    """

    def __init__(self, config: NezhaConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.memory = memory
        self.trace: Trace | None = None
        self.layer = nn.ModuleList(
            NezhaLayer(config, memory) for _ in range(config.num_hidden_layers)
        )

    def blocks(self) -> list[Block]:
        """What the stream goes through: an attention and a feed-forward in turns."""
        layers = cast(list[NezhaLayer], self.layer)
        return [block for layer in layers for block in (layer.attention, layer)]

    def forward(self, x_BLD: torch.Tensor, memos: list[Memo]) -> torch.Tensor:
        """The stream after the last layer: (B, L, D)."""
        run = run_blocks if self.trace is None else self.trace.run_blocks
        return run(x_BLD, self.blocks(), memos, recompute=self.memory.residual != "stored")


class NezhaModel(nn.Module):
    """From token ids to hidden states."""

    def __init__(self, config: NezhaConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config = config
        self.exchange: Exchange = WHOLE_ROWS
        self.embeddings = NezhaEmbeddings(config)
        self.encoder = NezhaEncoder(config, memory)
        if config.sentence_pairs:
            self.pooler = Pooler(config)

    def attentions(self) -> list[Attention]:
        """First to last."""
        return cast(list[Attention], self.encoder.blocks()[::2])

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        segment_ids_BL: torch.Tensor | None,
        token_type_ids_BL: torch.Tensor | None,
        seed: int | None,
    ) -> torch.Tensor:
        """Hidden states after the last layer: (B, L, D)."""
        exchange, length = self.exchange, input_ids_BL.shape[1]
        first = exchange.first(length)

        def seed_of(*key: int) -> int | None:
            return None if seed is None else derive_seed(seed, *key)

        x_BLD = self.embeddings(input_ids_BL, token_type_ids_BL, seed_of(-1, first))
        document_BL = None
        if segment_ids_BL is not None:
            segment_ids_BL = exchange.whole(segment_ids_BL)
            document_BL = documents(segment_ids_BL).masked_fill(segment_ids_BL == 0, -1)
        sight = make_sight(
            length * exchange.degree,
            0,
            reach=None,
            device=x_BLD.device,
            document_BE=document_BL,
            causal=self.config.is_decoder,
        )
        count = 2 * self.config.num_hidden_layers
        memos = [Memo(sight, seed_of(number), first) for number in range(count)]
        hidden_BLD: torch.Tensor = self.encoder(x_BLD, memos)
        return hidden_BLD


class Nezha(SeededModel):
    """A NEZHA with what it is pretrained with: causal where `is_decoder`, else bidirectional."""

    def __init__(self, config: NezhaConfig, memory: MemoryConfig | None = None) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.memory = (memory or MemoryConfig()).settled(RESIDUALS)
        self.nezha = NezhaModel(config, self.memory)
        self.cls = Heads(config)
        self.apply(partial(normal_weights, std=config.initializer_range))
        if config.pad_token_id is not None:
            with torch.no_grad():
                self.nezha.embeddings.word_embeddings.weight[config.pad_token_id] = 0
        if config.tie_word_embeddings:
            embedding, decoder = self.nezha.embeddings.word_embeddings, self.lm_head.decoder
            decoder.weight = embedding.weight
            embedding.waiting = decoder.waiting = WaitingGradient()

    @property
    def lm_head(self) -> Predictions:
        """From hidden states to scores of tokens."""
        return self.cls.predictions

    def share_rows(self, exchange: Exchange) -> None:
        self.nezha.exchange = exchange
        for attention in self.nezha.attentions():
            attention.exchange = exchange

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pair_positions: torch.Tensor | None = None,
        pair_labels: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and number of predicted positions.

        Args:
            input_ids: (B, L) token ids.
            labels: (B, L) what each position predicts (already shifted), -100 for nothing.
            segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
            position_ids: (B, L) not read: attention knows how far tokens are from each other.
            token_type_ids: (B, L) which text of a pair a token belongs to; None for the first.
            pair_positions: (B, P) the first token of each pair of texts; anything where there is
                no pair. None, as without `sentence_pairs`, tells of no pairs.
            pair_labels: (B, P) whether the second text is another than the one that follows the
                first, -100 where there is no pair.

        Raises:
            UserError: The row is longer than the config allows.
        """
        hidden = self.hidden_states(input_ids, segment_ids, position_ids, token_type_ids)
        head = self.lm_head

        def loss_of_tile(hidden_BKD: torch.Tensor, labels_BK: torch.Tensor, _: int) -> Any:
            return head(hidden_BKD, labels_BK)

        tiles, waiting = self._head_tiles(hidden), head.decoder.waiting
        total, count = tiled_loss(loss_of_tile, [hidden], labels, tiles, head.learned(), waiting)
        if pair_positions is None or pair_labels is None:
            return total, count
        predicted_B = (labels != IGNORE_INDEX).sum(1)
        scores_BP2 = self.pair_scores(hidden, pair_positions)
        return total + pairs_loss(scores_BP2, pair_labels, predicted_B), count

    def pair_scores(
        self, hidden_BLD: torch.Tensor, pair_positions_BP: torch.Tensor
    ) -> torch.Tensor:
        """Whether the second text of pairs follows the first (0) or not (1): (B, P, 2)."""
        row_B1 = torch.arange(len(hidden_BLD), device=hidden_BLD.device)[:, None]
        first_BPD = hidden_BLD[row_B1, pair_positions_BP.clamp(min=0)]
        scores: torch.Tensor = self.cls.seq_relationship(self.nezha.pooler(first_BPD))
        return scores

    def _head_tiles(self, stream_BLD: torch.Tensor) -> int:
        rows, length, width = stream_BLD.shape
        vocabulary, device = self.config.vocab_size, stream_BLD.device.type
        return self.memory.head_tiles_for(rows, length, width, vocabulary, device)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last layer: (B, L, D)."""
        self.config.check_length(input_ids.shape[1] * self.nezha.exchange.degree)
        hidden: torch.Tensor = self.nezha(input_ids, segment_ids, token_type_ids, self._take_seed())
        return hidden

    def logits(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of every position: (B, L, V)."""
        hidden = self.hidden_states(input_ids, segment_ids, position_ids, token_type_ids)
        return self.lm_head(hidden)

    def token_losses(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **pairs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `LanguageModel`; of tokens alone, whatever `pairs` there are."""
        types = {"token_type_ids": token_type_ids}
        return super().token_losses(input_ids, labels, segment_ids, position_ids, **types)

    def new_cache(self) -> NezhaCache:
        """An empty memory for `step`."""
        return new_cache(self)

    def step(self, input_ids: torch.Tensor, cache: NezhaCache) -> torch.Tensor:
        """Scores of the token after `input_ids`: see `nezha_generation.step`."""
        return generation_step(self, input_ids, cache)

    def execution_plan(self, rows: int, length: int) -> dict[str, int]:
        stream_BLD = self.like_stream(rows, length, self.config.hidden_size)
        plan = {"the head": self._head_tiles(stream_BLD)}
        for number, block in enumerate(self.nezha.encoder.blocks()):
            name = "feed_forward" if number % 2 else "attention"
            plan[f"{name} {number // 2}"] = len(block.tiles(stream_BLD))
        return plan

    def activation_bytes(
        self, rows: int, length: int, *, half: bool = False, memory: MemoryConfig | None = None
    ) -> dict[str, int]:
        with as_if(self.memory, memory and memory.settled(RESIDUALS)):
            stream_BLD = self.like_stream(rows, length, self.config.hidden_size)
            attention, feed_forward, *_ = self.nezha.encoder.blocks()
            return Pass(
                config=self.config,
                memory=dataclasses.replace(self.memory),
                rows=rows,
                length=length,
                degree=self.nezha.exchange.degree,
                attention_tiles=len(attention.tiles(stream_BLD)),
                feed_forward_tiles=len(feed_forward.tiles(stream_BLD)),
                head_tiles=self._head_tiles(stream_BLD),
                device=stream_BLD.device,
                stream=stream_BLD.element_size(),
                product=2 if half else stream_BLD.element_size(),
            ).activation_bytes()

    def flops_per_token(self, sequence_length: int) -> float:
        """See `LanguageModel`; relative positions are as many more keys and values."""
        config = self.config
        embeddings = sum(p.numel() for p in self.nezha.embeddings.parameters())
        weights = sum(p.numel() for p in self.parameters()) - embeddings
        if config.tie_word_embeddings:
            weights += config.vocab_size * config.hidden_size
        keys = sequence_length + 2 * config.max_relative_position + 1
        return 6.0 * weights + 12.0 * config.num_hidden_layers * keys * config.hidden_size
