"""Reading with a Reformer."""

from __future__ import annotations

from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any

import torch

from lsp.models import reformer_weights
from lsp.models.heads.outputs import Reading
from lsp.models.heads.reader import Reader, segments_of
from lsp.models.layers.attention_maps import local_map, lsh_map
from lsp.models.layers.losses import tiled_loss
from lsp.models.reformer import Reformer
from lsp.models.reformer_layers import Attention, LSHSelfAttention, Memo


class ReformerReader(Reader):
    """Reads with a Reformer; a head reads both of its streams side by side."""

    prefix = "reformer"
    other_names = MappingProxyType({"lm_head.decoder.bias": "lm_head.bias"})
    backbone: Reformer

    @property
    def width(self) -> int:
        return 2 * int(self.config.hidden_size)

    @property
    def head_dropout(self) -> float:
        dropout = self.config.classifier_dropout
        return float(self.config.hidden_dropout_prob if dropout is None else dropout)

    def read(
        self,
        task: str,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        num_hashes: int | None = None,
        use_cache: bool = False,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Reading:
        """See `Reader.read`.

        `hidden_states` are those of the second stream, (B, L, D), and `attentions` by chunk,
        (B, N, C, K, W), those of an LSH layer in sorted order with C chunks in each of its rounds;
        (B, N, L, L) in a row of one chunk. In evaluation both are as long as the padded row. They
        belong to no graph.

        Args:
            task: Name of the head.
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding.
            segment_ids: (B, L) document numbers, in place of `attention_mask`.
            position_ids: (B, L) positions from 0.
            num_hashes: Rounds of hashing, in place of the config's.
            use_cache: Whether to show `past_buckets_states`.
            output_attentions: Whether to show what attention sees.
            output_hidden_states: Whether to show the stream between the layers.
        """
        segments = segments_of(attention_mask, segment_ids)
        run = partial(self.backbone.hidden_states, input_ids, segments, position_ids, num_hashes)
        look = partial(_look, maps=output_attentions) if output_attentions or use_cache else None
        hidden, trace = self._traced(run, look, output_hidden_states)
        shown: dict[str, Any] = {}
        if output_hidden_states:
            shown["hidden_states"] = tuple(trace.hidden_states)
        if output_attentions:
            shown["attentions"] = tuple(weights for weights, _, _ in trace.seen)
        if use_cache:
            here = input_ids.shape[1]
            shown["past_buckets_states"] = [
                (buckets[..., :here], states[:, :here]) for _, buckets, states in trace.seen
            ]
        return Reading(hidden, shown)

    def dropped(self, name: str) -> bool:
        return reformer_weights.DROPPED.search(name) is not None

    def scores(self, hidden_BLW: torch.Tensor) -> torch.Tensor:
        return self.backbone.lm_head(hidden_BLW)

    def tiled_loss(
        self, hidden_BLW: torch.Tensor, labels_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head, tiles = self.backbone.lm_head, self.backbone._head_tiles(hidden_BLW)

        def loss_of_tile(*tile: Any) -> torch.Tensor:
            return head(*tile[:2])[0]

        return tiled_loss(loss_of_tile, [hidden_BLW], labels_BL, tiles, head.parameters())


def _look(
    attention: Attention, x_BLD: torch.Tensor, memo: Memo, *, maps: bool
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Weights, buckets by round as published, and inputs of a layer's attention."""
    kernel, config = attention.self_attention, attention.config
    kind = "lsh" if isinstance(kernel, LSHSelfAttention) else "local"
    states_BLD = attention.layer_norm(x_BLD)
    weights = None
    if maps:
        projected = kernel.projections(states_BLD, slice(0, config.num_attention_heads))
        options = {
            "chunk_length": getattr(config, f"{kind}_attn_chunk_length"),
            "chunks_before": getattr(config, f"{kind}_num_chunks_before"),
            "chunks_after": getattr(config, f"{kind}_num_chunks_after"),
            "causal": config.is_decoder,
            "segment_ids_BL": memo.segment_ids,
        }
        q_BNLH, k_BNLH, *_ = (kernel.split(x_BLE) for x_BLE in projected)
        if kind == "lsh":
            weights = lsh_map(q_BNLH, memo.buckets, **options)
        else:
            weights = local_map(q_BNLH, k_BNLH, **options)
    return weights, _published_buckets(memo, config.num_buckets, x_BLD.device), states_BLD


def _published_buckets(memo: Memo, num_buckets: Any, device: torch.device) -> torch.Tensor:
    """Buckets numbered on from round to round: (B, N, R, L); empty where nothing is hashed."""
    if memo.buckets is None:
        return torch.tensor([], device=device)
    total = num_buckets if isinstance(num_buckets, int) else prod(num_buckets)
    if memo.segment_ids is not None and bool((memo.segment_ids == 0).any()):
        total += 1  # padding has a bucket of its own
    rounds_R1 = torch.arange(memo.buckets.shape[2], device=device)[:, None]
    return memo.buckets.long() + total * rounds_R1
