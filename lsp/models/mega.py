"""Mega (Ma et al., 2209.10655): moving averages and gated attention, bidirectional or causal.

Reading order: `Mega.forward` → `MegaModel` (embeddings, layers) → `mega_layers.py` → `layers/`
(`moving_average.py`, `group_attention.py`, `staged.py`). Module names are those of the published
weights, but for the head's. Letters of shapes are in `lsp/core/batch.py`.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import nn

from lsp.models.layers.chunked_attention import compute_dtype
from lsp.models.layers.dropout import derive_seed
from lsp.models.layers.group_attention import make_groups
from lsp.models.layers.losses import LanguageModelHead, tiled_loss
from lsp.models.layers.moving_average import make_layout
from lsp.models.layers.sequential import run_blocks
from lsp.models.layers.staged import run_staged
from lsp.models.layers.tied import TiedEmbedding, WaitingGradient
from lsp.models.mega_config import RESIDUALS, MegaConfig
from lsp.models.mega_generation import MegaCache
from lsp.models.mega_generation import step as generation_step
from lsp.models.mega_layers import (
    GatedAttention,
    MegaLayer,
    Memo,
    MultiDimensionDampedEma,
    RotaryBias,
    SimpleBias,
)
from lsp.models.mega_memory import Pass
from lsp.models.memory import MemoryConfig, as_if
from lsp.models.seeded import SeededModel


class MegaEmbeddings(nn.Module):
    """Words, and token types where there are any; there are no positions."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.word_embeddings = TiedEmbedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = None
        if config.add_token_type_embeddings:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(
        self, input_ids_BL: torch.Tensor, token_type_ids_BL: torch.Tensor | None
    ) -> torch.Tensor:
        """From ids to the stream: (B, L, D)."""
        x_BLD: torch.Tensor = self.word_embeddings(input_ids_BL)
        if self.token_type_embeddings is None:
            return x_BLD
        if token_type_ids_BL is None:
            token_type_ids_BL = torch.zeros_like(input_ids_BL)
        return x_BLD + self.token_type_embeddings(token_type_ids_BL)


class MegaModel(nn.Module):
    """From token ids to the stream."""

    def __init__(self, config: MegaConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.embedding_layer = MegaEmbeddings(config)
        self.layers = nn.ModuleList(
            MegaLayer(config, memory) for _ in range(config.num_hidden_layers)
        )

    def parts(self) -> list[MegaLayer]:
        """The layers, first to last."""
        return cast(list[MegaLayer], list(self.layers))

    def memo(self, segment_ids_BL: torch.Tensor | None, x_BLD: torch.Tensor) -> Memo:
        """What all blocks are told of a pass, but for the seeds."""
        config = self.config
        rows, length = x_BLD.shape[:2]
        layout = make_layout(segment_ids_BL, compute_dtype(x_BLD))
        groups = make_groups(
            rows,
            length,
            segment_ids_BL,
            chunk=config.chunk_size if config.use_chunking else None,
            causal=config.is_decoder,
            device=x_BLD.device,
        )
        return Memo(segment_ids_BL, layout, groups, None)

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        segment_ids_BL: torch.Tensor | None,
        token_type_ids_BL: torch.Tensor | None,
        seed: int | None,
    ) -> torch.Tensor:
        """The stream after the last layer: (B, L, D)."""
        x_BLD = self.embedding_layer(input_ids_BL, token_type_ids_BL)
        shared, recompute = self.memo(segment_ids_BL, x_BLD), self.memory.residual == "recomputed"
        for number, layer in enumerate(self.parts()):
            memos = [
                dataclasses.replace(
                    shared,
                    dropout_seed=None if seed is None else derive_seed(seed, number, part),
                )
                for part in range(2)
            ]
            x_BLD = run_staged(x_BLD, layer.mega_layer, memos[0], recompute=recompute)
            if layer.nffn is not None:
                x_BLD = run_blocks(x_BLD, [layer.nffn], memos[1:], recompute=recompute)
        return x_BLD


class MegaHead(nn.Module):
    """The projection onto the vocabulary, behind a dense layer where there is one."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense = nn.Linear(width, width) if config.add_lm_hidden_dense_layer else None
        self.decoder = LanguageModelHead(width, config.vocab_size)

    def learned(self) -> list[torch.Tensor]:
        """What the loss is differentiated by."""
        before = [] if self.dense is None else list(self.dense.parameters())
        return [*before, *self.decoder.learned()]

    def forward(
        self, hidden_BKD: torch.Tensor, labels_BK: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores (B, K, V), or with labels the summed loss."""
        if self.dense is not None:
            hidden_BKD = torch.tanh(self.dense(hidden_BKD))
        if labels_BK is None:
            scores: torch.Tensor = self.decoder(hidden_BKD)
            return scores
        loss: torch.Tensor = self.decoder(hidden_BKD, labels_BK)[0]
        return loss


class Mega(SeededModel):
    """A Mega with its language-model head: causal where `is_decoder`, else bidirectional.

    Positions are not read: averages and chunks begin with every document.
    """

    def __init__(self, config: MegaConfig, memory: MemoryConfig | None = None) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.memory = (memory or MemoryConfig()).settled(RESIDUALS)
        self.mega = MegaModel(config, self.memory)
        self.lm_head = MegaHead(config)
        for module in self.modules():
            _initialise(module, config)
        embedding, decoder = self.mega.embedding_layer.word_embeddings, self.lm_head.decoder
        if config.pad_token_id is not None:
            with torch.no_grad():
                embedding.weight[config.pad_token_id] = 0
        if config.tie_word_embeddings:
            decoder.weight = embedding.weight
            embedding.waiting = decoder.waiting = WaitingGradient()

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and number of predicted positions.

        Args:
            input_ids: (B, L) token ids.
            labels: (B, L) what each position predicts (already shifted), -100 for nothing.
            segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
            position_ids: Not read.
            token_type_ids: (B, L), where `add_token_type_embeddings`; None for 0.

        Raises:
            UserError: The length does not fit the chunks or the positional bias.
        """
        x_BLD = self.hidden_states(input_ids, segment_ids, position_ids, token_type_ids)
        head = self.lm_head

        def loss_of_tile(x_BKD: torch.Tensor, labels_BK: torch.Tensor, _: int) -> torch.Tensor:
            loss: torch.Tensor = head(x_BKD, labels_BK)
            return loss

        tiles, waiting = self._head_tiles(x_BLD), head.decoder.waiting
        return tiled_loss(loss_of_tile, [x_BLD], labels, tiles, head.learned(), waiting)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last layer: (B, L, D), in evaluation of any length."""
        check = self.config.check_length if self.training else self.config.check_positions
        check(input_ids.shape[1])
        x_BLD: torch.Tensor = self.mega(input_ids, segment_ids, token_type_ids, self._take_seed())
        return x_BLD

    def logits(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of every position: (B, L, V)."""
        scores: torch.Tensor = self.lm_head(self.hidden_states(input_ids, segment_ids))
        return scores

    def new_cache(self) -> MegaCache:
        """An empty memory for `step`."""
        return MegaCache()

    def step(self, input_ids: torch.Tensor, cache: MegaCache) -> torch.Tensor:
        """Scores of the token after `input_ids`: see `mega_generation.step`."""
        return generation_step(self, input_ids, cache)

    def _head_tiles(self, stream_BLD: torch.Tensor) -> int:
        rows, length, width = stream_BLD.shape
        vocabulary, device = self.config.vocab_size, stream_BLD.device.type
        return self.memory.head_tiles_for(rows, length, width, vocabulary, device)

    def execution_plan(self, rows: int, length: int) -> dict[str, int]:
        stream_BLD = self.like_stream(rows, length, self.config.hidden_size)
        plan = {"the head": self._head_tiles(stream_BLD)}
        for number, layer in enumerate(self.mega.parts()):
            plan[f"attention {number}"] = len(layer.mega_layer.tiles(stream_BLD))
            if layer.nffn is not None:
                plan[f"feed_forward {number}"] = len(layer.nffn.tiles(stream_BLD))
        return plan

    def activation_bytes(
        self, rows: int, length: int, *, half: bool = False, memory: MemoryConfig | None = None
    ) -> dict[str, int]:
        with as_if(self.memory, memory and memory.settled(RESIDUALS)):
            return self._pass(rows, length, half).activation_bytes()

    def _pass(self, rows: int, length: int, half: bool) -> Pass:
        stream_BLD = self.like_stream(rows, length, self.config.hidden_size)
        layer = self.mega.parts()[0]
        feed_forward = 1 if layer.nffn is None else len(layer.nffn.tiles(stream_BLD))
        return Pass(
            config=self.config,
            memory=dataclasses.replace(self.memory),
            rows=rows,
            length=length,
            degree=1,
            attention_tiles=len(layer.mega_layer.tiles(stream_BLD)),
            feed_forward_tiles=feed_forward,
            head_tiles=self._head_tiles(stream_BLD),
            device=stream_BLD.device,
            stream=stream_BLD.element_size(),
            product=2 if half else stream_BLD.element_size(),
        )

    def flops_per_token(self, sequence_length: int) -> float:
        """See `LanguageModel`; attention counts the keys of a chunk, averages their recurrence."""
        config = self.config
        embeddings = sum(p.numel() for p in self.mega.embedding_layer.parameters())
        averages = sum(
            p.numel() for layer in self.mega.parts() for p in layer.mega_layer.ema_gate.parameters()
        )
        weights = sum(p.numel() for p in self.parameters()) - embeddings - averages
        if config.tie_word_embeddings:
            weights += config.vocab_size * config.hidden_size
        keys = min(sequence_length, config.chunk_size) if config.use_chunking else sequence_length
        products = keys * (config.shared_representation_size + config.intermediate_size)
        directions = 2 if config.bidirectional else 1
        recurrence = 2 * directions * config.hidden_size * config.ema_projection_size
        return 6.0 * (weights + config.num_hidden_layers * (products + recurrence))


@torch.no_grad()
def _initialise(module: nn.Module, config: MegaConfig) -> None:
    """Fresh weights, as published."""
    std = config.initializer_range
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    elif isinstance(module, MultiDimensionDampedEma):
        for factor in (module.damping_factor, module.decay_factor):
            nn.init.normal_(factor, std=config.ema_delta_alpha_range)
        nn.init.normal_(module.ema_expansion_matrix, std=config.ema_beta_range)
        # Averages count for and against in turns, which is more stable.
        module.ema_expansion_matrix[:, 0::2] += 1
        module.ema_expansion_matrix[:, 1::2] -= 1
        for weight in (module.kernel_projection_matrix, module.residual_weight):
            nn.init.normal_(weight, std=config.ema_gamma_omega_range)
    elif isinstance(module, GatedAttention):
        nn.init.normal_(module.qk_weight, std=std)
        nn.init.zeros_(module.qk_bias)
    elif isinstance(module, RotaryBias | SimpleBias):
        for weight in module.parameters():
            nn.init.normal_(weight, std=std)
