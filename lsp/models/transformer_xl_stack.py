"""Transformer-XL without its head: from token ids to the stream, and from a memory to the next.

Letters of shapes are in `lsp/core/batch.py`; M stands for remembered positions, E for those and the
row's together, P for distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from lsp.models.layers.adaptive_softmax import AdaptiveEmbedding
from lsp.models.layers.chunks import documents
from lsp.models.layers.dropout import derive_seed, seeded_dropout
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.models.layers.sequential import run_blocks
from lsp.models.layers.sight import make_sight
from lsp.models.layers.tied import WaitingGradient, give_waiting
from lsp.models.layers.trace import Trace
from lsp.models.memory import MemoryConfig
from lsp.models.transformer_xl_config import (
    ABSOLUTE,
    LEARNED_ABSOLUTE,
    RELATIVE,
    TransformerXLConfig,
)
from lsp.models.transformer_xl_layers import DecoderAttention, Memo, TransformerXLLayer

SEGMENTS = "segments"
"""Name, in a memory, of what says which of its positions the next row may see."""
WAVELENGTH = 10000.0


def layer_name(number: int) -> str:
    """Name, in a memory, of what entered a layer."""
    return f"layer_{number}"


@dataclass(frozen=True)
class Seeds:
    """Of what is random in a forward pass.

    Attributes:
        step: The same in all rows of an optimizer step.
        dropout: Of this micro-batch.
    """

    step: int
    dropout: int

    def of(self, *key: int) -> int:
        return derive_seed(self.dropout, *key)


class TransformerXLModel(nn.Module):
    """From token ids to the stream, and from a memory to the next.

    Attributes:
        trace: Looks on at the next passes; None for nobody.
    """

    def __init__(self, config: TransformerXLConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.exchange: Exchange = WHOLE_ROWS
        self.trace: Trace | None = None
        self.mem_len = config.mem_len
        self.word_emb = AdaptiveEmbedding(
            config.cluster_ends, config.d_embed, config.d_model, config.div_val
        )
        self.layers = nn.ModuleList(
            TransformerXLLayer(config, memory) for _ in range(config.n_layer)
        )
        self.shared: list[tuple[str, WaitingGradient]] = []
        if not config.untie_r:
            self._share_biases()

    def _share_biases(self) -> None:
        for name in ("r_w_bias", "r_r_bias"):
            bias = nn.Parameter(torch.empty(self.config.n_head, self.config.d_head))
            setattr(self, name, bias)
            self.shared.append((name, WaitingGradient()))
            for attention in self.attentions():
                setattr(attention, name, bias)
        for attention in self.attentions():
            attention.waiting = self.shared[0][1], self.shared[1][1]

    def attentions(self) -> list[DecoderAttention]:
        """First to last."""
        return [cast(TransformerXLLayer, layer).dec_attn for layer in self.layers]

    def forward(
        self,
        input_ids_BL: torch.Tensor,
        segment_ids_BL: torch.Tensor | None,
        position_ids_BL: torch.Tensor | None,
        memory: dict[str, torch.Tensor] | None,
        seeds: Seeds | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        """The stream after the last layer, (B, L, D), and what to remember of the pass."""
        config, exchange, here = self.config, self.exchange, input_ids_BL.shape[1]
        first, length = exchange.first(here), here * exchange.degree
        x_BLD = self.word_emb(input_ids_BL)
        if memory is None and config.zero_memory and self.mem_len:
            memory = self._zeros(x_BLD)
        remembered = memory[layer_name(0)].shape[1] if memory is not None else 0
        document_BE = self._documents(input_ids_BL, segment_ids_BL, position_ids_BL, memory)
        reach = config.reach(self.mem_len)
        sight = make_sight(
            length, remembered, reach=reach, device=x_BLD.device, document_BE=document_BE
        )
        places_PD = self._places(x_BLD, remembered, length, reach, seeds)
        if config.attn_type == ABSOLUTE:
            assert places_PD is not None
            x_BLD = x_BLD + places_PD[: length - first][-here:].flip(0)
        dropout_seed = None if seeds is None else seeds.of(-1, first)
        x_BLD = seeded_dropout(x_BLD, config.dropout, dropout_seed)
        x_BLD = give_waiting(x_BLD, [(getattr(self, name), w) for name, w in self.shared])
        entered = []
        for number, module in enumerate(self.layers):
            layer = cast(TransformerXLLayer, module)
            # A run may go on in another precision than that of its checkpoint.
            before = None if memory is None else memory[layer_name(number)].to(x_BLD.dtype)
            if config.attn_type == LEARNED_ABSOLUTE:
                x_BLD = layer.dec_attn("placed", x_BLD, first, length, before is not None)
            if config.attn_type == ABSOLUTE and before is not None and number == 0:
                assert places_PD is not None
                before = before + places_PD[length : length + remembered].flip(0)
            entered.append(
                self._tail(x_BLD, None if memory is None else memory[layer_name(number)])
            )
            memos = [
                Memo(
                    sight,
                    before,
                    places_PD,
                    None if seeds is None else seeds.of(number, block),
                    first,
                )
                for block in range(2)
            ]
            recompute = self.memory.residual != "stored"
            run = run_blocks if self.trace is None else self.trace.run_blocks
            x_BLD = run(x_BLD, [layer.dec_attn, layer.pos_ff], memos, recompute=recompute)
        return x_BLD, self._remember(entered, document_BE, input_ids_BL, remembered)

    def _zeros(self, x_BLD: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the published model remembers before a text begins."""
        shape = (x_BLD.shape[0], self.mem_len, x_BLD.shape[2])
        zeros_BMD = x_BLD.new_zeros(shape)
        ones_BM = torch.ones(shape[:2], dtype=torch.int64, device=x_BLD.device)
        layers = {layer_name(number): zeros_BMD for number in range(self.config.n_layer)}
        return {**layers, SEGMENTS: ones_BM}

    def _documents(
        self,
        input_ids_BL: torch.Tensor,
        segment_ids_BL: torch.Tensor | None,
        position_ids_BL: torch.Tensor | None,
        memory: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor | None:
        """(B, E) document of each key, -1 for what nobody sees; None where all are of one."""
        exchange, across = self.exchange, self.config.memory_across_documents
        if segment_ids_BL is None:
            shape = (len(input_ids_BL), input_ids_BL.shape[1] * exchange.degree)
            row_BL = torch.zeros(shape, dtype=torch.int32, device=input_ids_BL.device)
        else:
            segment_ids_BL = exchange.whole(segment_ids_BL)
            row_BL = documents(segment_ids_BL)
            if across:
                row_BL = torch.zeros_like(row_BL)
            row_BL = row_BL.masked_fill(segment_ids_BL == 0, -1)
        if memory is None:
            return None if segment_ids_BL is None else row_BL
        seen_BM = memory[SEGMENTS] != 0
        if position_ids_BL is not None and not across:
            seen_BM = seen_BM & (exchange.whole(position_ids_BL)[:, :1] > 0)
        # What goes on from the memory is the row's first document.
        before_BM = torch.where(seen_BM, 0, -1).to(row_BL.dtype)
        document_BE = torch.cat([before_BM, row_BL], dim=1)
        return document_BE if segment_ids_BL is not None or not bool(seen_BM.all()) else None

    def _places(
        self,
        x_BLD: torch.Tensor,
        remembered: int,
        length: int,
        reach: int | None,
        seeds: Seeds | None,
    ) -> torch.Tensor | None:
        """Sinusoids of the distances that a pass needs: (P, D); further ones are like the last."""
        config, count = self.config, remembered + length
        if config.attn_type == RELATIVE and reach is not None:
            count = min(count, reach + 1)
        places_PD = self.places(x_BLD, count)
        if config.attn_type != RELATIVE or places_PD is None or seeds is None:
            return places_PD
        return seeded_dropout(places_PD, config.dropout, seeds.of(-3))

    def places(self, x_BLD: torch.Tensor, count: int) -> torch.Tensor | None:
        """Sinusoids of the distances 0, 1, …, as the stream has them: (P, D), or None."""
        config = self.config
        if config.attn_type not in (RELATIVE, ABSOLUTE):
            return None
        if config.attn_type == RELATIVE and config.clamp_len > 0:
            count = min(count, config.clamp_len + 1)
        place_P = torch.arange(count, dtype=torch.float32, device=x_BLD.device)
        if config.clamp_len > 0:
            place_P = place_P.clamp(max=config.clamp_len)
        even_D = torch.arange(0, config.d_model, 2, dtype=torch.float32, device=x_BLD.device)
        angle_PD = torch.outer(place_P, 1 / (WAVELENGTH ** (even_D / config.d_model)))
        return torch.cat([angle_PD.sin(), angle_PD.cos()], dim=-1).to(x_BLD.dtype)

    def _tail(self, x_BLD: torch.Tensor, before_BMD: torch.Tensor | None) -> torch.Tensor | None:
        """The last `mem_len` positions of the memory and the row, or fewer: (B, M, D)."""
        if self.mem_len == 0:
            return None
        tail_BMD = x_BLD.detach()[:, -self.mem_len :]
        if self.exchange.degree > 1:
            tail_BMD = self.exchange.whole(tail_BMD)[:, -self.mem_len :]
        missing = self.mem_len - tail_BMD.shape[1]
        if before_BMD is None or missing == 0:
            return tail_BMD.clone()
        return torch.cat([before_BMD[:, -missing:].to(tail_BMD.dtype), tail_BMD], dim=1)

    def _remember(
        self,
        entered: list[torch.Tensor | None],
        document_BE: torch.Tensor | None,
        input_ids_BL: torch.Tensor,
        remembered: int,
    ) -> dict[str, torch.Tensor] | None:
        if self.mem_len == 0:
            return None
        if document_BE is None:
            keys = remembered + input_ids_BL.shape[1] * self.exchange.degree
            document_BE = torch.zeros(len(input_ids_BL), keys, dtype=torch.int32)
            document_BE = document_BE.to(input_ids_BL.device)
        last_B1 = document_BE.amax(dim=1, keepdim=True)
        tail_BM = document_BE[:, -self.mem_len :]
        segments_BM = ((tail_BM == last_B1) & (tail_BM >= 0)).long()
        memory = {layer_name(i): cast(torch.Tensor, x) for i, x in enumerate(entered)}
        memory[SEGMENTS] = segments_BM
        # Rows that begin a text remember as many positions as all others, which nobody sees.
        missing = self.mem_len - segments_BM.shape[1]
        return {name: _padded_in_front(x, missing) for name, x in memory.items()}


def _padded_in_front(x_BM: torch.Tensor, count: int) -> torch.Tensor:
    if count == 0:
        return x_BM
    return torch.cat([x_BM.new_zeros(x_BM.shape[0], count, *x_BM.shape[2:]), x_BM], dim=1)
