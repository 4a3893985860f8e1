"""Reading with a Transformer-XL, and its heads: they take memories and give memories."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import require
from lsp.models import transformer_xl_weights
from lsp.models.heads.labels import next_labels
from lsp.models.heads.models import HeadedModel
from lsp.models.heads.outputs import HeadOutput, Reading
from lsp.models.heads.reader import Reader, segments_of
from lsp.models.layers.attention_maps import relative_map
from lsp.models.layers.losses import tiled_loss
from lsp.models.transformer_xl import TransformerXL
from lsp.models.transformer_xl_config import TransformerXLConfig
from lsp.models.transformer_xl_layers import DecoderAttention, Memo
from lsp.models.transformer_xl_stack import SEGMENTS, layer_name


class TransformerXLReader(Reader):
    """Reads with a Transformer-XL."""

    prefix = "transformer"
    backbone: TransformerXL

    @property
    def width(self) -> int:
        return int(self.config.d_model)

    @property
    def head_dropout(self) -> float:
        return float(self.config.dropout)

    @property
    def encoder(self) -> Any:
        return self.backbone.transformer

    @property
    def embedding(self) -> nn.Module:
        return self.backbone.transformer.word_emb

    def initialise(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Linear):
            return
        if self.config.init == "uniform":
            nn.init.uniform_(module.weight, -self.config.init_range, self.config.init_range)
        else:
            nn.init.normal_(module.weight, std=self.config.init_std)

    def published_name(self, name: str) -> str:
        return transformer_xl_weights.OUR_PROJECTIONS.sub(r"\1.\2", name)

    def published_besides(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return transformer_xl_weights.frequencies(self.config)

    def dropped(self, name: str) -> bool:
        return name == transformer_xl_weights.FREQUENCIES

    def drop_head(self) -> None:
        del self.backbone.crit

    def read(
        self,
        task: str,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        mems: list[torch.Tensor] | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Reading:
        """See `Reader.read`.

        `attentions` are (B, N, L, M + L): the memory's positions, then the row's. `hidden_states`
        are what enters each layer, and what the head reads.

        Args:
            task: Name of the head.
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding, which is not seen. `mems` do not say what of them
                is padding: rows of different lengths go on from `backbone.remembered()`, handed to
                `backbone.recall`.
            segment_ids: (B, L) document numbers, in place of `attention_mask`.
            position_ids: (B, L) positions in the document, see `TransformerXL.forward`.
            mems: (M, B, D) of each layer, which a pass over the rows before gave.
            output_attentions: Whether to show what attention sees.
            output_hidden_states: Whether to show the stream between the layers.
        """
        require(
            mems is None or segment_ids is None,
            "mems do not say of which document they are: leave segment_ids out, or hand the "
            "model's own memory to backbone.recall",
        )
        if mems is not None:
            self.backbone.recall(memory_of(mems, len(input_ids), self.config))
        segments = segments_of(attention_mask, segment_ids)
        run = partial(self.backbone.hidden_states, input_ids, segments, position_ids)
        hidden, trace = self._traced(
            run, _look if output_attentions else None, output_hidden_states
        )
        shown: dict[str, Any] = {}
        memory = self.backbone.remembered()
        if memory is not None:
            shown["mems"] = mems_of(memory, self.config.n_layer)
        if output_hidden_states:
            # Each layer is looked at by itself, at both of its ends.
            shown["hidden_states"] = (*trace.hidden_states[::2], hidden)
        if output_attentions:
            shown["attentions"] = tuple(trace.seen)
        return Reading(hidden, shown)

    def scores(self, hidden_BLW: torch.Tensor) -> torch.Tensor:
        return self.backbone.crit(hidden_BLW)

    def losses(self, hidden_BKD: torch.Tensor, labels_BK: torch.Tensor) -> torch.Tensor:
        """Loss of each position, 0 where nothing is predicted: (B, K)."""
        losses_T = self.backbone.crit.losses(hidden_BKD.flatten(0, 1), labels_BK.flatten())
        return losses_T.view(labels_BK.shape)

    def tiled_loss(
        self, hidden_BLW: torch.Tensor, labels_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head, tiles = self.backbone.crit, self.backbone._head_tiles(hidden_BLW)

        def loss_of_tile(*tile: Any) -> torch.Tensor:
            return head(*tile[:2])

        waiting = head.waiting()
        return tiled_loss(loss_of_tile, [hidden_BLW], labels_BL, tiles, head.learned(), waiting)


def memory_of(
    mems: list[torch.Tensor], rows: int, config: TransformerXLConfig
) -> dict[str, torch.Tensor]:
    """A memory of ours, all of which is seen, from the published form.

    Raises:
        UserError: There is not one of (M, B, D) for each layer.
    """
    require(
        len(mems) == config.n_layer
        and all(x.shape == (len(mems[0]), rows, config.d_model) for x in mems),
        f"mems has the shapes {[tuple(x.shape) for x in mems]}: it needs a tensor of "
        f"(positions, {rows} rows, d_model={config.d_model}) for each of n_layer={config.n_layer}",
    )
    memory = {layer_name(number): x.transpose(0, 1) for number, x in enumerate(mems)}
    shape = memory[layer_name(0)].shape[:2]
    return memory | {SEGMENTS: torch.ones(shape, dtype=torch.int64, device=mems[0].device)}


def mems_of(memory: dict[str, torch.Tensor], layers: int) -> list[torch.Tensor]:
    """The published form of a memory: what no row may see at its beginning is left out."""
    seen_M = memory[SEGMENTS].any(dim=0)
    first = int(seen_M.int().argmax()) if bool(seen_M.any()) else len(seen_M)
    return [memory[layer_name(n)][:, first:].transpose(0, 1) for n in range(layers)]


def _look(attention: DecoderAttention, x_BLD: torch.Tensor, memo: Memo) -> torch.Tensor:
    """Weights of a layer."""
    mixed = attention.before(x_BLD, memo, slice(0, x_BLD.shape[1]))
    q_BNLH, k_BNLH, _ = (attention.split(x_BLE) for x_BLE in mixed)
    remembered, distances = attention.told(attention.beside(memo), memo)
    return relative_map(
        q_BNLH,
        k_BNLH if remembered is None else torch.cat([remembered[0], k_BNLH], dim=2),
        reach=memo.sight.reach,
        document_BE=memo.sight.documents,
        distances=distances,
    )


class AdaptiveLanguageModelling(HeadedModel):
    """Log-probabilities of the next tokens, or the losses of labels."""

    task = "causal_lm"
    by_token = True
    keeps_lm_head = True
    reader: TransformerXLReader

    def build(self) -> None:
        """Has nothing of its own."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        output_losses: bool = True,
        **inputs: Any,
    ) -> HeadOutput:
        """Without labels `prediction_scores`, (B, L, V); with labels `losses`, (B, L - 1).

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding.
            labels: (B, L) the tokens themselves, which are shifted here; -100 for those that do
                not count, whose loss is 0. Where none counts, the mean is 0 too.
            output_losses: Whether to give `losses`; without, the loss is computed tile by tile.
            inputs: See `TransformerXLReader.read`, among them `mems`.
        """
        reading = self.read(input_ids, attention_mask=attention_mask, **inputs)
        out = HeadOutput(**reading.shown)
        if labels is None:
            out.prediction_scores = out.logits = self.reader.scores(reading.hidden)
            return out
        next_BK = next_labels(labels, inputs.get("segment_ids"))
        hidden_BKD = reading.hidden[:, :-1]
        if output_losses:
            out.losses = self.reader.losses(hidden_BKD, next_BK)
            loss_sum = out.losses.sum()
        else:
            loss_sum = self.reader.tiled_loss(hidden_BKD, next_BK)[0]
        out.loss = loss_sum / (next_BK != IGNORE_INDEX).sum().clamp_min(1)
        return out


class LastTokenClassification(HeadedModel):
    """Labels of a row, from its last token that is no padding."""

    task = "sequence_classification"
    reader: TransformerXLReader

    def build(self) -> None:
        config = self.config
        require(
            config.d_embed == config.d_model,
            f"d_embed={config.d_embed} and d_model={config.d_model}: the published {self.task} "
            "reads one with as many numbers as the other; make them equal",
        )
        self.score = nn.Linear(config.d_embed, self.labels.num_labels, bias=False)

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
            attention_mask: (B, L) 0 for padding; None for what `pad_token_id` says.
            labels: As `Labels.loss` takes them.
            inputs: See `TransformerXLReader.read`, among them `mems`.

        Raises:
            UserError: Several rows, and nothing says where they end.
        """
        reading = self.read(input_ids, attention_mask=attention_mask, **inputs)
        ids_BL = self.reader.some_ids(reading.hidden) if input_ids is None else input_ids
        rows_B = torch.arange(len(ids_BL), device=ids_BL.device)
        logits_BC = self.score(reading.hidden[rows_B, self._last(ids_BL, attention_mask)])
        loss = None if labels is None else self.labels.loss(logits_BC, labels)
        return HeadOutput(loss=loss, logits=logits_BC, **reading.shown)

    def _last(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """The last token of each row that is no padding: (B,)."""
        rows, length = input_ids.shape
        if attention_mask is not None:
            index_L = torch.arange(length, device=input_ids.device)
            return torch.where(attention_mask != 0, index_L, 0).amax(dim=1)
        padding = self.config.pad_token_id
        require(
            padding is not None or rows == 1,
            f"pad_token_id=null does not say where {rows} rows end: give an attention_mask, or set "
            "pad_token_id",
        )
        if padding is None:
            return input_ids.new_full((1,), length - 1)
        # Before the first padding; the last token where there is none, or where a row begins so.
        first_B = (input_ids == padding).int().argmax(-1)
        return (first_B - 1) % length
