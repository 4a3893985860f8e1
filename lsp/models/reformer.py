"""The Reformer (Kitaev et al., 2001.04451), causal or bidirectional.

Reading order: `Reformer.forward` → `ReformerModel` (embeddings, stack) → `Attention` and
`FeedForward` in `reformer_layers.py`, the two branches of a layer → `layers/`. Module names are
those of the published weights. Letters of shapes are in `lsp/core/batch.py`.
"""

from __future__ import annotations

import dataclasses
from math import prod
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.errors import require
from lsp.models.interface import LanguageModel
from lsp.models.layers.dropout import derive_seed, seeded_dropout
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.models.layers.fresh import normal_weights
from lsp.models.layers.losses import LanguageModelHead, tiled_loss
from lsp.models.layers.lsh import bucket_dtype
from lsp.models.layers.positions import AxialPositions, AxialTables, LearnedPositions
from lsp.models.layers.reversible import Branch, Drift, run_stack
from lsp.models.layers.trace import Trace
from lsp.models.memory import MemoryConfig, as_if
from lsp.models.reformer_config import RESIDUALS, ReformerConfig
from lsp.models.reformer_generation import LayerCache, ReformerCache
from lsp.models.reformer_generation import step as generation_step
from lsp.models.reformer_layers import Memo, ReformerLayer
from lsp.models.reformer_memory import Pass


class Seeds(NamedTuple):
    """Of what is random in a forward pass.

    Attributes:
        hashing: Of the rotations: the same for every row of an optimizer step.
        dropout: Of the dropout masks: differs between micro-batches; None drops nothing.
    """

    hashing: int
    dropout: int | None


EVALUATION_SEEDS = Seeds(hashing=0, dropout=None)
"""In evaluation mode the same input always gives the same output."""


class ReformerEmbeddings(nn.Module):
    """Word and position embeddings."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.dropout = config.hidden_dropout_prob
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings: nn.Module = (
            AxialPositions(config.axial_pos_shape, config.axial_pos_embds_dim, self.dropout)
            if config.axial_pos_embds
            else LearnedPositions(config.max_position_embeddings, config.hidden_size, self.dropout)
        )

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        position_ids_BL: torch.Tensor,
        seed: int | None,
        first: int = 0,
    ) -> torch.Tensor:
        """Embeds what is at positions `first`.. of the rows: (B, L, D)."""
        word_seed, position_seed = (
            (None, None) if seed is None else (derive_seed(seed, 0, first), derive_seed(seed, 1))
        )
        words_BLD = seeded_dropout(self.word_embeddings(input_ids_BL), self.dropout, word_seed)
        return words_BLD + self.position_embeddings(position_ids_BL, position_seed)


class ReformerEncoder(nn.Module):
    """The reversible stack, and the layer norm over both of its streams.

    Attributes:
        trace: Looks on at the next passes; None for nobody.
    """

    def __init__(self, config: ReformerConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.drift = Drift()
        self.trace: Trace | None = None
        self.layers = nn.ModuleList(ReformerLayer(config, k, memory) for k in config.attn_layers)
        self.layer_norm = nn.LayerNorm(2 * config.hidden_size, eps=config.layer_norm_eps)

    def branches(self) -> list[Branch]:
        return [b for layer in self.stack() for b in (layer.attention, layer.feed_forward)]

    def stack(self) -> list[ReformerLayer]:
        """The layers, first to last."""
        return cast(list[ReformerLayer], list(self.layers))

    def forward(self, x_BLD: torch.Tensor, memos: list[Memo]) -> tuple[torch.Tensor, torch.Tensor]:
        run = run_stack if self.trace is None else self.trace.run_stack
        return run(
            x_BLD,
            self.branches(),
            memos,
            residual=self.memory.residual,
            drift=self.drift if self.memory.measure_drift else None,
        )

    def join(self, first: torch.Tensor, second: torch.Tensor, seed: int | None) -> torch.Tensor:
        """Final hidden states of some positions from both streams: (B, K, 2 D)."""
        joined = self.layer_norm(torch.cat([first, second], dim=-1))
        return seeded_dropout(joined, self.config.hidden_dropout_prob, seed)


class ReformerModel(nn.Module):
    """From token ids to the two streams."""

    def __init__(self, config: ReformerConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config = config
        self.exchange: Exchange = WHOLE_ROWS
        self.embeddings = ReformerEmbeddings(config)
        self.encoder = ReformerEncoder(config, memory)
        self.held: list[Memo] | None = None

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        segment_ids_BL: torch.Tensor | None,
        position_ids_BL: torch.Tensor,
        *,
        seeds: Seeds,
        num_hashes: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams, (B, L, D) each.

        Args:
            input_ids_BL: (B, L) token ids.
            segment_ids_BL: (B, L) document numbers, 0 for padding.
            position_ids_BL: (B, L) positions.
            seeds: Of what is random.
            num_hashes: Rounds of hashing; None for the config's.
        """
        memos = self.memos(input_ids_BL, segment_ids_BL, seeds, num_hashes)
        dropout_seed = None if seeds.dropout is None else derive_seed(seeds.dropout, -1)
        x_BLD = self.embeddings(input_ids_BL, position_ids_BL, dropout_seed, memos[0].first)
        return self.encoder(x_BLD, memos)

    def memos(
        self,
        input_ids_BL: torch.Tensor,
        segment_ids_BL: torch.Tensor | None,
        seeds: Seeds = EVALUATION_SEEDS,
        num_hashes: int | None = None,
    ) -> list[Memo]:
        """One memo per branch, for a forward pass over these tokens."""
        config, here = self.config, input_ids_BL.shape[1]
        length = here * self.exchange.degree
        config.settle_num_buckets(length)
        rounds = config.num_hashes if num_hashes is None else num_hashes
        require(rounds >= 1, f"num_hashes={rounds} has to be 1 or more")
        if segment_ids_BL is not None:
            segment_ids_BL = self.exchange.whole(segment_ids_BL)
        memos = [
            Memo(
                segment_ids_BL,
                None if seeds.dropout is None else derive_seed(seeds.dropout, branch),
                hash_seed(config, seeds, branch),
                rounds,
                self.exchange.first(here),
            )
            for branch in range(2 * config.num_hidden_layers)
        ]
        hashing = [m for m, k in zip(memos[::2], config.attn_layers, strict=True) if k == "lsh"]
        # A sequence of one chunk is attended whole.
        if hashing and length > config.lsh_attn_chunk_length:
            shape = (len(hashing), input_ids_BL.shape[0], rounds, length)
            storage = self._bucket_storage(*shape, input_ids_BL.device)
            for memo, buckets_BNRL in zip(hashing, storage, strict=True):
                memo.buckets = buckets_BNRL
        if self.held is not None:
            self.held = self.held or hashing
            for memo, first in zip(hashing, self.held, strict=True):
                memo.buckets, memo.hashed = first.buckets, first.hashed
        return memos

    def _bucket_storage(
        self, layers: int, batch: int, rounds: int, length: int, device: torch.device
    ) -> torch.Tensor:
        """Room for the buckets of all layers, of the heads that attend here: (layers, B, N, R, L).

        One tensor, made first: many small ones that outlive the large ones between them would
        leave holes in the process's heap.
        """
        factors = self.config.num_buckets
        total = factors if isinstance(factors, int) else prod(factors)
        heads = self.config.num_attention_heads // self.exchange.degree
        shape = (layers, batch, heads, rounds, length)
        return torch.empty(shape, dtype=bucket_dtype(total), device=device)


def hash_seed(config: ReformerConfig, seeds: Seeds, branch: int) -> int:
    """Seed of a layer's rotations: as configured, or different in every layer and step."""
    if config.hash_seed is not None:
        return config.hash_seed
    return derive_seed(seeds.hashing, branch, 0)


class ReformerHead(nn.Module):
    """Holds the projection onto the vocabulary.

    The published weights have a bias that the published model does not apply. It is carried along
    unused, and not learned.
    """

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.decoder = LanguageModelHead(2 * config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("bias", torch.zeros(config.vocab_size))

    def forward(self, hidden_BKD: torch.Tensor, labels_BK: torch.Tensor | None = None) -> Any:
        return self.decoder(hidden_BKD, labels_BK)


class Reformer(LanguageModel):
    """A Reformer with its language-model head: causal where `is_decoder`, else bidirectional."""

    def __init__(self, config: ReformerConfig, memory: MemoryConfig | None = None) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.memory = (memory or MemoryConfig()).settled(RESIDUALS)
        self.reformer = ReformerModel(config, self.memory)
        self.lm_head = ReformerHead(config)
        self._seeds: Seeds | None = None
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        """Fresh weights, as published; norms keep torch's ones and zeros."""
        normal_weights(module, self.config.initializer_range)
        if isinstance(module, AxialTables):
            for table in module.parameters():
                nn.init.normal_(table, std=self.config.axial_norm_std)

    def repeat_positions(self, learned: int) -> tuple[str, ...]:
        positions = self.reformer.embeddings.position_embeddings
        assert isinstance(positions, AxialPositions | LearnedPositions)
        positions.repeat(learned)
        prefix = "reformer.embeddings.position_embeddings."
        return tuple(prefix + name for name, _ in positions.named_parameters())

    def begin_micro_batch(self, seed: int, first_row: int = 0) -> None:
        """Sets the seeds of the next forward pass in training mode.

        The rotations depend on `seed` alone, so that every row of a step is hashed alike however
        the rows are dealt out; the dropout masks also on `first_row`. A pass that was given none
        draws one number from torch's global CPU generator.
        """
        self._seeds = Seeds(seed, derive_seed(seed, -3, first_row))

    def share_rows(self, exchange: Exchange) -> None:
        self.reformer.exchange = exchange
        for layer in self.reformer.encoder.stack():
            layer.attention.self_attention.exchange = exchange

    def hold_sight(self, held: bool) -> bool:
        self.reformer.held = [] if held else None
        return "lsh" in self.config.attn_layers

    def measure_drift(self, enabled: bool) -> None:
        self.memory.measure_drift = enabled

    def reversible_drift(self) -> float | None:
        error = self.reformer.encoder.drift.error
        return None if error is None else float(error)

    def _take_seeds(self) -> Seeds:
        if not self.training:
            return EVALUATION_SEEDS
        seeds, self._seeds = self._seeds, None
        if seeds is None:
            seed = int(torch.randint(2**62, ()))
            return Seeds(seed, derive_seed(seed, -3, 0))
        return seeds

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        num_hashes: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and number of predicted positions.

        Args:
            input_ids: (B, L) token ids.
            labels: (B, L) what each position predicts (already shifted), -100 for nothing.
            segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
            position_ids: (B, L) positions; None for 0..L-1.
            num_hashes: Rounds of hashing, in place of the config's.

        Raises:
            UserError: In training mode, the length does not fit the chunks or the positions.
        """
        seeds = self._take_seeds()
        first, second = self._streams(input_ids, segment_ids, position_ids, num_hashes, seeds)
        padding = first.shape[1] - labels.shape[1]
        if padding:
            labels = F.pad(labels, (0, padding), value=-100)
        encoder, head = self.reformer.encoder, self.lm_head

        def loss_of_tile(
            first_BKD: torch.Tensor, second_BKD: torch.Tensor, labels_BK: torch.Tensor, tile: int
        ) -> torch.Tensor:
            tile_seed = (
                None
                if seeds.dropout is None
                else derive_seed(seeds.dropout, -2, tile, self.reformer.exchange.index)
            )
            return head(encoder.join(first_BKD, second_BKD, tile_seed), labels_BK)[0]

        learned = [*encoder.layer_norm.parameters(), *head.parameters()]
        return tiled_loss(loss_of_tile, [first, second], labels, self._head_tiles(first), learned)

    def _head_tiles(self, stream_BLD: torch.Tensor) -> int:
        length, chunk = stream_BLD.shape[1], self.config.chunk_size_lm_head
        if chunk and not self.memory.head_tiles:
            return -(-length // chunk)
        width, vocabulary = 2 * self.config.hidden_size, self.config.vocab_size
        device = stream_BLD.device.type
        return self.memory.head_tiles_for(len(stream_BLD), length, width, vocabulary, device)

    def execution_plan(self, rows: int, length: int) -> dict[str, int]:
        stream_BLD = self.like_stream(rows, length, self.config.hidden_size)
        plan = {"the head": self._head_tiles(stream_BLD)}
        for number, layer in enumerate(self.reformer.encoder.stack()):
            for name, branch in layer.named_children():
                assert isinstance(branch, Branch)
                tiles = len(branch.tiles(stream_BLD)) * len(branch.groups(stream_BLD))
                plan[f"{name} {number}"] = tiles
        return plan

    def activation_bytes(
        self, rows: int, length: int, *, half: bool = False, memory: MemoryConfig | None = None
    ) -> dict[str, int]:
        with as_if(self.memory, memory):
            return self._pass(rows, length, half).activation_bytes()

    def _pass(self, rows: int, length: int, half: bool) -> Pass:
        stream_BLD = self.like_stream(rows, length, self.config.hidden_size)
        layers = self.reformer.encoder.stack()
        spans = [layer.attention.groups(stream_BLD) for layer in layers]
        self.config.settle_num_buckets(length * self.reformer.exchange.degree)
        return Pass(
            config=self.config,
            memory=dataclasses.replace(self.memory),
            rows=rows,
            length=length,
            degree=self.reformer.exchange.degree,
            heads=tuple(max(span.stop - span.start for span in group) for group in spans),
            groups=tuple(len(group) for group in spans),
            feed_forward_tiles=len(layers[0].feed_forward.tiles(stream_BLD)),
            head_tiles=self._head_tiles(stream_BLD),
            device=stream_BLD.device,
            stream=stream_BLD.element_size(),
            product=2 if half else stream_BLD.element_size(),
        )

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        num_hashes: int | None = None,
    ) -> torch.Tensor:
        """Final hidden states, after the layer norm over both streams: (B, L, 2 D)."""
        seeds = self._take_seeds()
        first, second = self._streams(input_ids, segment_ids, position_ids, num_hashes, seeds)
        last_seed = None if seeds.dropout is None else derive_seed(seeds.dropout, -2, 0, 0)
        hidden = self.reformer.encoder.join(first, second, last_seed)
        return hidden[:, : input_ids.shape[1]]

    def logits(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        num_hashes: int | None = None,
    ) -> torch.Tensor:
        """Scores of every position: (B, L, V)."""
        return self.lm_head(self.hidden_states(input_ids, segment_ids, position_ids, num_hashes))

    def _streams(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        num_hashes: int | None,
        seeds: Seeds,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams; in evaluation they are longer where the chunks ask for padding."""
        if self.training:
            self.config.check_length(input_ids.shape[1] * self.reformer.exchange.degree)
        padded = self.padded(input_ids, segment_ids, position_ids)
        return self.reformer(*padded, seeds=seeds, num_hashes=num_hashes)

    def padded(
        self,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Ids, segments and positions of a length that fits the chunks, as published."""
        config, exchange, here = self.config, self.reformer.exchange, input_ids.shape[1]
        length = here * exchange.degree
        require(
            length <= config.max_positions,
            f"{length} tokens are more than the {config.max_positions} positions that have an "
            f"embedding",
        )
        if position_ids is None:
            first = exchange.first(here)
            position_ids = torch.arange(first, first + here, device=input_ids.device)
            position_ids = position_ids.expand_as(input_ids)
        padding = -length % config.length_multiple
        if padding == 0 or length <= min(config.chunk_lengths.values()):
            return input_ids, segment_ids, position_ids
        assert exchange.degree == 1, "shares of a row are not padded: its length fits the chunks"
        if segment_ids is None:
            segment_ids = torch.ones_like(input_ids)
        input_ids = F.pad(input_ids, (0, padding), value=config.pad_token_id or 0)
        # Nobody sees the padding; as published, its positions go on as far as there are any.
        further = torch.arange(1, 1 + padding, device=input_ids.device) + position_ids[:, -1:]
        position_ids = torch.cat([position_ids, further.clamp(max=config.max_positions - 1)], dim=1)
        return input_ids, F.pad(segment_ids, (0, padding)), position_ids

    def new_cache(self) -> ReformerCache:
        """An empty memory for `step`."""
        return ReformerCache([LayerCache() for _ in self.config.attn_layers])

    def step(self, input_ids: torch.Tensor, cache: ReformerCache) -> torch.Tensor:
        """Scores of the token after `input_ids`: see `reformer_generation.step`."""
        return generation_step(self, input_ids, cache)

    def flops_per_token(self, sequence_length: int) -> float:
        """See `LanguageModel`; attention counts the keys of the chunks that a query compares."""
        config = self.config
        tables = (nn.Embedding, AxialTables)
        looked_up = sum(
            p.numel() for m in self.modules() if isinstance(m, tables) for p in m.parameters()
        )
        weights = sum(p.numel() for p in self.parameters()) - looked_up
        keys = 0
        for kind in config.attn_layers:
            chunk = getattr(config, f"{kind}_attn_chunk_length")
            around = getattr(config, f"{kind}_num_chunks_before")
            around += getattr(config, f"{kind}_num_chunks_after")
            whole = sequence_length <= chunk
            rounds = config.num_hashes if kind == "lsh" and not whole else 1
            keys += rounds * min(sequence_length, chunk * (1 + around))
        width = config.num_attention_heads * config.attention_head_size
        return 6.0 * weights + 12.0 * keys * width
