"""Reading with a Longformer: which tokens are global, and what they see."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from lsp.core.errors import require
from lsp.models import longformer_weights
from lsp.models.heads.outputs import Reading
from lsp.models.heads.reader import Reader, segments_of
from lsp.models.layers.attention_maps import global_map, window_map
from lsp.models.layers.losses import tiled_loss
from lsp.models.longformer import Longformer
from lsp.models.longformer_layers import Memo, SelfAttention, WindowAttention


class LongformerReader(Reader):
    """Reads with a Longformer."""

    prefix = "longformer"
    other_names = MappingProxyType({longformer_weights.SECOND_BIAS: longformer_weights.BIAS})
    backbone: Longformer

    def __init__(self, backbone: Longformer) -> None:
        super().__init__(backbone)
        require(
            not self.config.is_decoder,
            "is_decoder=true: the heads want tokens that all of the row sees and that see all of "
            "it, which a causal Longformer cannot have; use objective=masked",
        )
        # Scores of padding reach the loss of some heads; as published, it learns nothing from them.
        embeddings = backbone.longformer.embeddings
        for table in (embeddings.word_embeddings, embeddings.position_embeddings):
            table.padding_idx = self.config.pad_token_id
        # A head may have global tokens even where pretraining had none.
        for module in backbone.modules():
            if isinstance(module, SelfAttention):
                for parameter in module.global_parameters():
                    parameter.requires_grad = True

    def read(
        self,
        task: str,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Reading:
        """See `Reader.read`.

        `attentions` are (B, N, L, G + window + 1): G, the most global tokens that a row of the
        batch has, come first, then the window from its first key on. 0 for global queries, whose
        weights are in `global_attentions`, (B, N, L, G), as long as the row is when padded to the
        longest window, as published; these are only there if there are global tokens.

        Args:
            task: Name of the head.
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding.
            segment_ids: (B, L) document numbers, in place of `attention_mask`.
            position_ids: (B, L) positions from 0; None for those that follow from the documents,
                or in a row of one document from what is not `pad_token_id`.
            global_attention_mask: (B, L) not 0 for global tokens. None for the first of a row in
                sequence classification, the question (what comes before the first separator) in
                question answering, the choice (what comes after the second) in multiple choice,
                and the first `global_tokens` of each document elsewhere.
            token_type_ids: (B, L) types of tokens.
            output_attentions: Whether to show what attention sees.
            output_hidden_states: Whether to show the stream between the layers.
        """
        segments = segments_of(attention_mask, segment_ids)
        if position_ids is None and segment_ids is None:
            position_ids = positions_of(input_ids, self.config.pad_token_id)
        if global_attention_mask is None:
            global_attention_mask = self.global_tokens(task, input_ids, position_ids)
        if global_attention_mask is not None and not bool(global_attention_mask.any()):
            global_attention_mask = None
        require(
            global_attention_mask is None or self.config.length_multiple == 1,
            f"attention_dilation={self.config.attention_dilation} knows no global tokens, which "
            f"{task} has: use attention_dilation=[], or give a global_attention_mask of zeros",
        )
        run = partial(
            self.backbone.hidden_states,
            input_ids,
            segments,
            position_ids,
            global_attention_mask,
            token_type_ids,
        )
        look = partial(_look, longest=max(self.config.windows)) if output_attentions else None
        hidden, trace = self._traced(run, look, output_hidden_states)
        shown: dict[str, Any] = {}
        if output_hidden_states:
            shown["hidden_states"] = tuple(trace.hidden_states)
        if output_attentions:
            shown["attentions"] = tuple(near for near, _ in trace.seen)
            if global_attention_mask is not None:
                shown["global_attentions"] = tuple(far for _, far in trace.seen)
        return Reading(hidden, shown)

    def global_tokens(
        self, task: str, input_ids: torch.Tensor, position_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Which tokens are global where nobody says: (B, L) bool, or None for the model's choice.

        Raises:
            UserError: A row does not have the three separators of a question and its text.
        """
        index_L = torch.arange(input_ids.shape[1], device=input_ids.device)
        if task == "sequence_classification":
            return (index_L == 0).expand_as(input_ids)
        if task == "question_answering":
            return index_L < self._first_separator(input_ids)
        if task == "multiple_choice":
            return index_L > self._first_separator(input_ids) + 1
        first = self.config.global_tokens
        if first and position_ids is not None:
            return (position_ids >= 0) & (position_ids < first)
        return None

    def _first_separator(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where the first part of each row ends: (B, 1)."""
        separator = self.config.sep_token_id
        require(separator is not None, "sep_token_id=null: give a global_attention_mask")
        found_BL = input_ids == separator
        count_B = found_BL.sum(1)
        require(
            bool((count_B == 3).all()),
            f"input_ids has rows with {count_B.tolist()} separators (sep_token_id={separator}), "
            "where a pair of texts has 3 in each: <s> one </s></s> other </s>; or give a "
            "global_attention_mask",
        )
        return found_BL.int().argmax(1, keepdim=True)

    def published_besides(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        bias = weights.get(longformer_weights.BIAS)
        return {} if bias is None else {longformer_weights.SECOND_BIAS: bias}

    def dropped(self, name: str) -> bool:
        return longformer_weights.DROPPED.search(name) is not None

    def scores(self, hidden_BLW: torch.Tensor) -> torch.Tensor:
        return self.backbone.lm_head(hidden_BLW)

    def tiled_loss(
        self, hidden_BLW: torch.Tensor, labels_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head, tiles = self.backbone.lm_head, self.backbone._head_tiles(hidden_BLW)

        def loss_of_tile(*tile: Any) -> torch.Tensor:
            return head(*tile[:2])

        learned, waiting = head.learned(), head.decoder.waiting
        return tiled_loss(loss_of_tile, [hidden_BLW], labels_BL, tiles, learned, waiting)


def positions_of(input_ids: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """Positions that count what is not padding, from 0; -1 for padding: (B, L)."""
    real_BL = torch.ones_like(input_ids) if pad_token_id is None else input_ids != pad_token_id
    return real_BL.cumsum(1) * real_BL - 1


def _look(
    attention: WindowAttention, x_BLD: torch.Tensor, memo: Memo, *, longest: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights of a layer: of what each token sees around it, and of what global tokens see."""
    whole = slice(0, x_BLD.shape[1])
    norm = getattr(attention, "LayerNorm", None)
    x_BLD = x_BLD if norm is None else norm(x_BLD)
    projected = attention.project(x_BLD, memo, attention.heads, whole)
    q_BNLH, k_BNLH, _, *for_global = (attention.split(x_BLE) for x_BLE in projected)
    before, after = attention.reach
    near = window_map(
        q_BNLH,
        k_BNLH,
        before=before,
        after=after,
        gaps=attention.gaps,
        segment_ids_BL=memo.segment_ids,
        global_BL=memo.global_mask,
    )
    if memo.global_mask is None:
        return near, None
    far = global_map(
        q_BNLH,
        for_global[0],
        global_BL=memo.global_mask,
        segment_ids_BL=memo.segment_ids,
        window=longest,
    )
    return near, far
