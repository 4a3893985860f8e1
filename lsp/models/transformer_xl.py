"""Transformer-XL (Dai et al., 1901.02860): rows that remember the rows before them.

Reading order: `TransformerXL.forward` → `TransformerXLModel` in `transformer_xl_stack.py`
→ the two blocks of a layer in `transformer_xl_layers.py` → `layers/`. Module names are those of
the published weights. Letters of shapes are in `lsp/core/batch.py`; M stands for remembered
positions.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import cast

import torch
from torch import nn

from lsp.models.interface import LanguageModel
from lsp.models.layers.adaptive_softmax import AdaptiveLogSoftmax, Projection
from lsp.models.layers.dropout import derive_seed, seeded_dropout
from lsp.models.layers.exchange import Exchange
from lsp.models.layers.losses import tiled_loss
from lsp.models.memory import MemoryConfig, as_if
from lsp.models.transformer_xl_config import (
    RESIDUALS,
    TransformerXLConfig,
)
from lsp.models.transformer_xl_generation import TransformerXLCache
from lsp.models.transformer_xl_generation import step as generation_step
from lsp.models.transformer_xl_layers import TransformerXLLayer
from lsp.models.transformer_xl_memory import Pass
from lsp.models.transformer_xl_stack import Seeds, TransformerXLModel


class TransformerXL(LanguageModel):
    """A Transformer-XL with its language-model head."""

    def __init__(self, config: TransformerXLConfig, memory: MemoryConfig | None = None) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.memory = (memory or MemoryConfig()).settled(RESIDUALS)
        self.transformer = TransformerXLModel(config, self.memory)
        self.crit = AdaptiveLogSoftmax(
            config.cluster_ends,
            config.d_embed,
            config.d_model,
            config.div_val,
            max(config.sample_softmax, 0),
        )
        self._seeds: Seeds | None = None
        self._recalled: dict[str, torch.Tensor] | None = None
        self._remembered: dict[str, torch.Tensor] | None = None
        self.apply(partial(_initialise, config=config))
        self.crit.tie(
            self.transformer.word_emb, config.tied_projections, config.tie_word_embeddings
        )

    @property
    def lm_head(self) -> AdaptiveLogSoftmax:
        """From hidden states to log probabilities."""
        return self.crit

    def reset_memory_length(self, mem_len: int) -> None:
        """Remembers more or less than in training, as the paper does in evaluation."""
        self.transformer.mem_len = mem_len

    def recall(self, memory: dict[str, torch.Tensor] | None) -> None:
        self._recalled = memory

    def remembered(self) -> dict[str, torch.Tensor] | None:
        """See `LanguageModel`.

        `layer_0`, … are what entered each layer, (B, M, D); `segments` (B, M) is 1 where the next
        row may see it, if its first document goes on. M is `mem_len`, also where a text began not
        as long ago.
        """
        return self._remembered

    def begin_micro_batch(self, seed: int, first_row: int = 0) -> None:
        """Sets the seeds of the next forward pass in training mode.

        The tokens of a sampled softmax depend on `seed` alone, so that all rows of a step have the
        same; the dropout masks also on `first_row`. A pass that was given none draws one number
        from torch's global CPU generator.
        """
        self._seeds = Seeds(seed, derive_seed(seed, first_row))

    def share_rows(self, exchange: Exchange) -> None:
        self.transformer.exchange = exchange
        for attention in self.transformer.attentions():
            attention.exchange = exchange

    def _take_seeds(self) -> Seeds | None:
        if not self.training:
            return None
        seeds, self._seeds = self._seeds, None
        if seeds is None:
            seed = int(torch.randint(2**62, ()))
            return Seeds(seed, derive_seed(seed, 0))
        return seeds

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and number of predicted positions.

        Args:
            input_ids: (B, L) token ids.
            labels: (B, L) what each position predicts (already shifted), -100 for nothing.
            segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
            position_ids: (B, L) positions in the document: above 0 at the beginning of a row that
                goes on from what was recalled; None where it does.

        Raises:
            UserError: The row is longer than learned absolute positions.
        """
        seeds = self._take_seeds()
        x_BLD = self._stream(input_ids, segment_ids, position_ids, seeds)
        sampled = None
        if self.crit.sampler is not None and seeds is not None:
            sampled = self.crit.draw(derive_seed(seeds.step, -4))
        share = self.transformer.exchange.index

        def loss_of_tile(x_BKD: torch.Tensor, labels_BK: torch.Tensor, tile: int) -> torch.Tensor:
            seed = None if seeds is None else seeds.of(-2, tile, share)
            x_BKD = seeded_dropout(x_BKD, self.config.dropout, seed)
            loss: torch.Tensor = self.crit(x_BKD, labels_BK, sampled)
            return loss

        tiles, waiting = self._head_tiles(x_BLD), self.crit.waiting()
        return tiled_loss(loss_of_tile, [x_BLD], labels, tiles, self.crit.learned(), waiting)

    def _stream(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        seeds: Seeds | None,
    ) -> torch.Tensor:
        self.config.check_length(input_ids.shape[1] * self.transformer.exchange.degree)
        recalled, self._recalled = self._recalled, None
        x_BLD, self._remembered = self.transformer(
            input_ids, segment_ids, position_ids, recalled, seeds
        )
        return x_BLD

    def _head_tiles(self, stream_BLD: torch.Tensor) -> int:
        rows, length, width = stream_BLD.shape
        device = stream_BLD.device.type
        return self.memory.head_tiles_for(rows, length, width, self._head_scores, device)

    @property
    def _head_scores(self) -> int:
        """The most scores of a position."""
        # The drawn tokens are at most twice as many as asked for.
        return 2 * self.config.sample_softmax + 1 if self.crit.sampler else self.crit.largest

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last layer: (B, L, D)."""
        seeds = self._take_seeds()
        x_BLD = self._stream(input_ids, segment_ids, position_ids, seeds)
        return seeded_dropout(
            x_BLD, self.config.dropout, None if seeds is None else seeds.of(-2, 0, 0)
        )

    def logits(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log probabilities of every position, fp32: (B, L, V)."""
        return self.crit(self.hidden_states(input_ids, segment_ids, position_ids))

    def new_cache(self) -> TransformerXLCache:
        """An empty memory for `step`."""
        return TransformerXLCache()

    def step(self, input_ids: torch.Tensor, cache: TransformerXLCache) -> torch.Tensor:
        """Log probabilities of the next token: see `transformer_xl_generation.step`."""
        return generation_step(self, input_ids, cache)

    def flops_per_token(self, sequence_length: int) -> float:
        """See `LanguageModel`; attention has a third product, of queries and distances.

        Of the head it counts what every token needs, the first cluster: how often the others are
        asked depends on the text.
        """
        config = self.config
        layers = sum(p.numel() for p in self.transformer.layers.parameters())
        scores = self.crit.spans[0][1] + len(self.crit.spans) - 1
        head = config.d_embed * scores
        if len(self.crit.out_projs):
            head += 2 * config.d_model * config.d_embed
        seen = config.mem_len + sequence_length
        keys = config.mem_len if config.same_length else seen
        products = 18.0 if config.relative else 12.0
        return (
            6.0 * (layers + head) + products * keys * config.n_layer * config.n_head * config.d_head
        )

    def execution_plan(self, rows: int, length: int) -> dict[str, int]:
        stream_BLD = self.like_stream(rows, length, self.config.d_model)
        plan = {"the head": self._head_tiles(stream_BLD)}
        for number, module in enumerate(self.transformer.layers):
            layer = cast(TransformerXLLayer, module)
            plan[f"attention {number}"] = len(layer.dec_attn.tiles(stream_BLD))
            plan[f"feed_forward {number}"] = len(layer.pos_ff.tiles(stream_BLD))
        return plan

    def activation_bytes(
        self, rows: int, length: int, *, half: bool = False, memory: MemoryConfig | None = None
    ) -> dict[str, int]:
        with as_if(self.memory, memory and memory.settled(RESIDUALS)):
            return self._pass(rows, length, half).activation_bytes()

    def _pass(self, rows: int, length: int, half: bool) -> Pass:
        stream_BLD = self.like_stream(rows, length, self.config.d_model)
        layer = cast(TransformerXLLayer, self.transformer.layers[0])
        return Pass(
            config=self.config,
            memory=dataclasses.replace(self.memory),
            mem_len=self.transformer.mem_len,
            rows=rows,
            length=length,
            degree=self.transformer.exchange.degree,
            attention_tiles=len(layer.dec_attn.tiles(stream_BLD)),
            feed_forward_tiles=len(layer.pos_ff.tiles(stream_BLD)),
            head_tiles=self._head_tiles(stream_BLD),
            head_scores=self._head_scores,
            device=stream_BLD.device,
            stream=stream_BLD.element_size(),
            product=2 if half else stream_BLD.element_size(),
        )


def _initialise(module: nn.Module, config: TransformerXLConfig) -> None:
    """Fresh weights, as published."""

    def fresh(weight: torch.Tensor) -> None:
        if config.init == "uniform":
            nn.init.uniform_(weight, -config.init_range, config.init_range)
        else:
            nn.init.normal_(weight, std=config.init_std)

    if isinstance(module, nn.Linear | nn.Embedding):
        fresh(module.weight)
    elif isinstance(module, Projection):
        nn.init.normal_(module.weight, std=config.proj_init_std)
    elif isinstance(module, nn.LayerNorm):
        nn.init.normal_(module.weight, 1.0, config.init_std)
    for name, parameter in module.named_parameters(recurse=False):
        if name in ("bias", "cluster_bias", "r_bias"):
            nn.init.zeros_(parameter)
        elif name in ("cluster_weight", "r_emb", "r_w_bias", "r_r_bias"):
            fresh(parameter)
