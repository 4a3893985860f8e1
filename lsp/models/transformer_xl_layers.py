"""The two blocks of a Transformer-XL layer: attention and feed-forward (1901.02860).

Module names are those of the published weights. Letters of shapes are in `lsp/core/batch.py`; E
stands for all heads side by side, M for remembered positions, P for distances or learned places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from lsp.models.layers.dropout import derive_seed, seeded_dropout
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.models.layers.linear import HeadLinear
from lsp.models.layers.relative_attention import Distances, relative_attention
from lsp.models.layers.sequential import Block
from lsp.models.layers.sight import Sight
from lsp.models.layers.tied import WaitingGradient
from lsp.models.layers.tiling import tile_spans
from lsp.models.memory import MemoryConfig
from lsp.models.transformer_xl_config import (
    LEARNED_ABSOLUTE,
    LEARNED_RELATIVE,
    RELATIVE,
    TransformerXLConfig,
)


@dataclass
class Memo:
    """What a block is told for one forward pass.

    Attributes:
        sight: Which keys each query sees, in whole rows.
        memory: (B, M, D) what entered this layer before the row; None for nothing.
        places: (P, D) what `attn_type` 0 knows of the distances 0..P-1.
        dropout_seed: Of every dropout mask in the block; None drops nothing.
        first: Position in its row of the first that is here.
    """

    sight: Sight
    memory: torch.Tensor | None
    places: torch.Tensor | None
    dropout_seed: int | None
    first: int = 0

    def seed(self, *key: int) -> int | None:
        return None if self.dropout_seed is None else derive_seed(self.dropout_seed, *key)


class DecoderAttention(Block):
    """Attention to a row and to the memory before it, with the positions of `attn_type`.

    Attributes:
        exchange: Brings what other processes hold of a row.
        waiting: Of `r_w_bias` and `r_r_bias`, where all layers share them.
    """

    brings = True
    waiting: tuple[WaitingGradient, WaitingGradient] | None = None

    def __init__(self, config: TransformerXLConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.exchange: Exchange = WHOLE_ROWS
        heads, size, width = config.n_head, config.d_head, config.d_model
        self.qkv_net = HeadLinear(width, 3 * heads * size)
        self.o_net = HeadLinear(heads * size, width)
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        if config.attn_type == RELATIVE:
            self.r_net = HeadLinear(width, heads * size)
            self.r_r_bias = nn.Parameter(torch.empty(heads, size))
        if config.relative:
            self.r_w_bias = nn.Parameter(torch.empty(heads, size))
        if config.attn_type in (LEARNED_RELATIVE, LEARNED_ABSOLUTE):
            self.r_emb = nn.Parameter(torch.empty(config.table_length, heads, size))
        if config.attn_type == LEARNED_RELATIVE:
            self.r_bias = nn.Parameter(torch.empty(config.table_length, heads))
        # The positions of the memory wait for those of the row, which are differentiated later.
        self.places_waiting = WaitingGradient()

    def learned(self) -> list[torch.Tensor]:  # type: ignore[override]
        parameters = dict(self.named_parameters())
        anchors = []
        if self.waiting is not None:
            del parameters["r_w_bias"], parameters["r_r_bias"]
            anchors += [one.anchor for one in self.waiting]
        if self.config.attn_type == LEARNED_ABSOLUTE:
            del parameters["r_emb"]
            anchors.append(self.places_waiting.anchor)
        return [*parameters.values(), *anchors]

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        stream = x_BLD.numel() * x_BLD.element_size()
        return tile_spans(x_BLD.shape[1], self.memory.tiles_for(stream, x_BLD.device.type))

    def placed(self, x_BLD: torch.Tensor, first: int, length: int, joined: bool) -> torch.Tensor:
        """Adds learned places, the last of the table to the end of a row (`attn_type` 3).

        Args:
            x_BLD: (B, L, D) input of the layer.
            first: Position in its row of the first that is here.
            length: Of the row.
            joined: Whether the memory of this layer gets places too.
        """
        if joined:
            self.places_waiting.join(self.r_emb)
        start = len(self.r_emb) - length + first
        return x_BLD + self.r_emb[start : start + x_BLD.shape[1]].flatten(1)

    def before(self, x_BKD: torch.Tensor, memo: Memo, tile: slice) -> tuple[torch.Tensor, ...]:
        if not self.config.pre_lnorm:
            return self.qkv_net(x_BKD).chunk(3, dim=-1)
        width = self.config.n_head * self.config.d_head
        normed_BKD = self.layer_norm(x_BKD)
        if self.config.relative:
            return self.qkv_net(normed_BKD).chunk(3, dim=-1)
        # As in the published code, the norm is for what is seen, and not for who sees it.
        keys = self.qkv_net(normed_BKD, rows=slice(width, None))
        return self.qkv_net(x_BKD, rows=slice(0, width)), *keys.chunk(2, dim=-1)

    def beside(self, memo: Memo) -> tuple[torch.Tensor, ...]:
        """Keys and values of the memory (B, M, E), and what is known of distances, by head."""
        config, found = self.config, []
        heads = self.exchange.heads(slice(0, config.n_head))
        if memo.memory is not None:
            found += self._remembered(memo.memory, memo.sight.length, heads)
        if config.attn_type == RELATIVE:
            assert memo.places is not None
            rows = slice(heads.start * config.d_head, heads.stop * config.d_head)
            r_PNH = self.r_net(memo.places, rows=rows).unflatten(-1, (-1, config.d_head))
            biases: list[torch.Tensor] = [self.r_w_bias, self.r_r_bias]
            if self.waiting is not None:
                biases = [w.of(b) for w, b in zip(self.waiting, biases, strict=True)]
            found += [r_PNH.transpose(0, 1), *(bias[heads] for bias in biases)]
        elif config.attn_type == LEARNED_RELATIVE:
            known = len(self.r_emb)
            if config.clamp_len > 0:
                known = min(known, config.clamp_len)
            r_PNH, b_PN = (x[-known:, heads].flip(0) for x in (self.r_emb, self.r_bias))
            found += [r_PNH.transpose(0, 1), self.r_w_bias[heads], b_PN.t()]
        return tuple(found)

    def _remembered(
        self, memory_BMD: torch.Tensor, length: int, heads: slice
    ) -> list[torch.Tensor]:
        if self.config.attn_type == LEARNED_ABSOLUTE:
            table = self.places_waiting.of(self.r_emb).flatten(1)
            table = table[: len(table) - length]
            missing = memory_BMD.shape[1] - len(table)
            if missing > 0:
                first = (
                    table[:1] if len(table) else self.places_waiting.of(self.r_emb).flatten(1)[:1]
                )
                table = torch.cat([first.expand(missing, -1), table])
            memory_BMD = memory_BMD + table[len(table) - memory_BMD.shape[1] :]
        if self.config.pre_lnorm:
            memory_BMD = self.layer_norm(memory_BMD)
        width, size = self.config.n_head * self.config.d_head, self.config.d_head
        return [
            self.qkv_net(
                memory_BMD,
                rows=slice(part * width + heads.start * size, part * width + heads.stop * size),
            )
            for part in (1, 2)
        ]

    def across(self, mixed: Sequence[torch.Tensor], memo: Memo) -> torch.Tensor:
        exchange, (q_BLE, k_BLE, v_BLE, *others) = self.exchange, mixed
        q_BNLH, k_BNLH, v_BNLH = map(self.split, exchange.to_heads([q_BLE, k_BLE, v_BLE]))
        remembered, distances = self.told(others, memo)
        seed = memo.seed(0, exchange.heads(slice(0, self.config.n_head)).start)
        out_BNLH = relative_attention(
            q_BNLH,
            k_BNLH,
            v_BNLH,
            memo.sight,
            remembered=remembered,
            distances=distances,
            dropout=0.0 if seed is None else self.config.dropatt,
            dropout_seed=seed,
        )
        return exchange.to_positions(out_BNLH.transpose(1, 2).flatten(2))

    def told(
        self, beside: Sequence[torch.Tensor], memo: Memo
    ) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, Distances | None]:
        """What `beside` gave: keys and values of the memory, (B, N, M, H) each, and distances."""
        remembered, others = None, list(beside)
        if memo.memory is not None:
            k_BME, v_BME, *others = others
            remembered = self.split(k_BME), self.split(v_BME)
        if self.config.attn_type == RELATIVE:
            return remembered, Distances(*others)
        if self.config.attn_type == LEARNED_RELATIVE:
            r_NPH, u_NH, b_NP = others
            return remembered, Distances(r_NPH, u_NH, b=b_NP)
        return remembered, None

    def split(self, x_BLE: torch.Tensor) -> torch.Tensor:
        """Separates the heads: (B, L, E) to (B, N, L, H)."""
        return x_BLE.unflatten(-1, (-1, self.config.d_head)).transpose(1, 2)

    def after(
        self, mixed_BKE: torch.Tensor | None, x_BKD: torch.Tensor, memo: Memo, tile: slice
    ) -> torch.Tensor:
        assert mixed_BKE is not None
        seed = memo.seed(2, memo.first + tile.start)
        out_BKD = seeded_dropout(self.o_net(mixed_BKE), self.config.dropout, seed) + x_BKD
        return out_BKD if self.config.pre_lnorm else self.layer_norm(out_BKD)


class PositionwiseFeedForward(Block):
    """Two linear layers and a ReLU, under their published names."""

    mixes = False

    def __init__(self, config: TransformerXLConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        inner, outer = (
            nn.Linear(config.d_model, config.d_inner),
            nn.Linear(config.d_inner, config.d_model),
        )
        self.CoreNet = nn.ModuleDict({"0": inner, "3": outer})
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        tiles = self.memory.feed_forward_tiles
        if tiles == 0:
            width = max(self.config.d_inner, self.config.d_model)
            wide = x_BLD.shape[0] * x_BLD.shape[1] * width * x_BLD.element_size()
            tiles = self.memory.tiles_for(wide, x_BLD.device.type)
        return tile_spans(x_BLD.shape[1], tiles)

    def after(
        self, mixed_BKE: torch.Tensor | None, x_BKD: torch.Tensor, memo: Memo, tile: slice
    ) -> torch.Tensor:
        seed = [memo.seed(part, memo.first + tile.start) for part in range(2)]
        dropped = self.config.dropout
        out_BKD = self.layer_norm(x_BKD) if self.config.pre_lnorm else x_BKD
        out_BKF = seeded_dropout(F.relu(self.CoreNet["0"](out_BKD)), dropped, seed[0])
        out_BKD = seeded_dropout(self.CoreNet["3"](out_BKF), dropped, seed[1]) + x_BKD
        return out_BKD if self.config.pre_lnorm else self.layer_norm(out_BKD)


class TransformerXLLayer(nn.Module):
    """A layer."""

    def __init__(self, config: TransformerXLConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.dec_attn = DecoderAttention(config, memory)
        self.pos_ff = PositionwiseFeedForward(config, memory)
