"""Reading with a NEZHA, and the head of its own that it was published with."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lsp.core.errors import require
from lsp.models import nezha_weights
from lsp.models.heads.models import HeadedModel, Pooler
from lsp.models.heads.outputs import HeadOutput, Reading
from lsp.models.heads.reader import Reader, segments_of
from lsp.models.layers.attention_maps import clipped_map
from lsp.models.layers.losses import tiled_loss
from lsp.models.nezha import Nezha
from lsp.models.nezha_layers import Attention, Memo


class NezhaReader(Reader):
    """Reads with a NEZHA, of which only tokens are told: a head has a pooler of its own."""

    prefix = "nezha"
    other_names = MappingProxyType({nezha_weights.SECOND_BIAS: nezha_weights.BIAS})
    backbone: Nezha

    def __init__(self, backbone: Nezha) -> None:
        super().__init__(backbone)
        if self.config.sentence_pairs:
            backbone.config = dataclasses.replace(self.config, sentence_pairs=False)
            del backbone.nezha.pooler, backbone.cls.seq_relationship
        # Padding reaches the loss of some heads; as published, its vector learns nothing from it.
        backbone.nezha.embeddings.word_embeddings.padding_idx = self.config.pad_token_id

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
        token_type_ids: torch.Tensor | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Reading:
        """See `Reader.read`; `attentions` are (B, N, L, L).

        Args:
            task: Name of the head.
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding.
            segment_ids: (B, L) document numbers, in place of `attention_mask`.
            position_ids: (B, L) not read.
            token_type_ids: (B, L) which text of a pair a token belongs to.
            output_attentions: Whether to show what attention sees.
            output_hidden_states: Whether to show the stream between the layers.
        """
        segments = segments_of(attention_mask, segment_ids)
        run = partial(
            self.backbone.hidden_states, input_ids, segments, position_ids, token_type_ids
        )
        hidden, trace = self._traced(
            run, _look if output_attentions else None, output_hidden_states
        )
        shown: dict[str, Any] = {}
        if output_hidden_states:
            shown["hidden_states"] = tuple(trace.hidden_states)
        if output_attentions:
            shown["attentions"] = tuple(trace.seen)
        return Reading(hidden, shown)

    def published_besides(self, weights: Any) -> dict[str, torch.Tensor]:
        bias = weights.get(nezha_weights.BIAS)
        return {} if bias is None else {nezha_weights.SECOND_BIAS: bias}

    def dropped(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in (nezha_weights.DROPPED, nezha_weights.PAIRS))

    def drop_head(self) -> None:
        del self.backbone.cls

    def scores(self, hidden_BLW: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.backbone.lm_head(hidden_BLW)
        return scores

    def tiled_loss(
        self, hidden_BLW: torch.Tensor, labels_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head, tiles = self.backbone.lm_head, self.backbone._head_tiles(hidden_BLW)

        def loss_of_tile(*tile: Any) -> torch.Tensor:
            loss: torch.Tensor = head(*tile[:2])
            return loss

        learned, waiting = head.learned(), head.decoder.waiting
        return tiled_loss(loss_of_tile, [hidden_BLW], labels_BL, tiles, learned, waiting)


class PooledClassification(HeadedModel):
    """Labels of a row, from what the pooler makes of its first token."""

    task = "sequence_classification"

    def build(self) -> None:
        require(
            not self.config.is_decoder,
            f"is_decoder=true: {self.task} reads the first token, which in a causal model sees "
            "nothing else; use objective=masked or next_sentence",
        )
        self.pooler = Pooler(self.reader)
        self.dropout = nn.Dropout(self.reader.head_dropout)
        self.classifier = nn.Linear(self.reader.width, self.labels.num_labels)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **inputs: Any,
    ) -> HeadOutput:
        """Scores of the labels, (B, labels), and the mean loss.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding.
            labels: As `Labels.loss` takes them.
            inputs: See the architecture's `Reader.read`.
        """
        reading = self.read(input_ids, attention_mask=attention_mask, **inputs)
        logits_BC = self.classifier(self.dropout(self.pooler(reading.hidden)))
        loss = None if labels is None else self.labels.loss(logits_BC, labels)
        return HeadOutput(loss=loss, logits=logits_BC, **reading.shown)


def _look(attention: Attention, x_BLD: torch.Tensor, memo: Memo) -> torch.Tensor:
    """Weights of a layer: (B, N, L, L)."""
    q_BNLH, k_BNLH, _ = (attention.split(x_BLE) for x_BLE in attention.self(x_BLD))
    return clipped_map(
        q_BNLH,
        k_BNLH,
        attention.table(x_BLD.device).to(q_BNLH.dtype),
        causal=memo.sight.causal,
        document_BL=memo.sight.documents,
    )
