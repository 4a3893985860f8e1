"""Models that leak, each in one way, made of a sound one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lsp.models.interface import LanguageModel
from lsp.models.reformer import Reformer
from tests.training.tiny import reformer

VOCABULARY = 64


def sound(causal: bool = True, **values: Any) -> Reformer:
    torch.manual_seed(0)
    return reformer("stored", **{"attn_layers": ["local"] * 2, "is_decoder": causal} | values)


def attention_of(model: Reformer, layer: int = 1) -> Any:
    return model.reformer.encoder.stack()[layer].attention.self_attention


LEAKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "the position before, over boundaries": lambda out_BLE: out_BLE.roll(1, 1),
    "the position after": lambda out_BLE: out_BLE.roll(-1, 1),
    "half a row away": lambda out_BLE: out_BLE.roll(out_BLE.shape[1] // 2, 1),
    "the mean of the row": lambda out_BLE: out_BLE.mean(1, keepdim=True).expand_as(out_BLE),
    "another row": lambda out_BLE: out_BLE.roll(1, 0),
}


def leaky(
    kind: str, only: str = "", *, size: float = 1e-3, layer: int = 1, **values: Any
) -> Reformer:
    """A Reformer one of whose attentions lets something of elsewhere through.

    Args:
        kind: A key of `LEAKS`.
        only: `values` or `gradients`, where the leak is to show in one of them alone.
        size: Of what comes through.
        layer: Whose attention.
        values: Of the config.
    """
    model = sound(**values)
    attention = attention_of(model, layer)
    attend = attention.attend

    def leak(*arguments: Any) -> torch.Tensor:
        out_BLE: torch.Tensor = attend(*arguments)
        more_BLE = size * LEAKS[kind](out_BLE)
        if only == "values":
            more_BLE = more_BLE.detach()
        if only == "gradients":  # zero, bit for bit, but not for autograd
            more_BLE = more_BLE - more_BLE.detach()
        return out_BLE + more_BLE

    attention.attend = leak
    return model


def without_documents(layer: int, **values: Any) -> Reformer:
    """A Reformer one of whose attentions is not told which document is where."""
    model = sound(**values)
    attention = attention_of(model, layer)
    attend = attention.attend

    def ignorant(qkv: Any, memo: Any, *more: Any) -> torch.Tensor:
        kept, memo.segment_ids = memo.segment_ids, None
        out_BLE: torch.Tensor = attend(qkv, memo, *more)
        memo.segment_ids = kept
        return out_BLE

    attention.attend = ignorant
    return model


def seeing_padding(layer: int) -> Reformer:
    """A Reformer one of whose attentions takes padding for a part of the document before it."""
    model = sound(causal=False)
    attention = attention_of(model, layer)
    attend = attention.attend

    def generous(qkv: Any, memo: Any, *more: Any) -> torch.Tensor:
        kept = memo.segment_ids
        memo.segment_ids = kept.where(kept != 0, kept.cummax(1).values)
        out_BLE: torch.Tensor = attend(qkv, memo, *more)
        memo.segment_ids = kept
        return out_BLE

    attention.attend = generous
    return model


def unmixed(only: str = "") -> Reformer:
    """A Reformer whose attentions give nothing, or nothing that is differentiated."""
    model = sound()
    for layer in range(2):
        attention = attention_of(model, layer)
        attend = attention.attend
        attention.attend = lambda *arguments, attend=attend: (
            attend(*arguments).detach() if only == "gradients" else 0 * attend(*arguments)
        )
    return model


class Remembering(LanguageModel):
    """A Reformer that adds to each row something of what it was shown before.

    Args:
        kind: What it remembers: `own` (the mean of the last document, for its next part),
            `everything` (the mean of all, for its next part), `for all` (the mean of the last
            document, for every document) or `nothing`.
    """

    def __init__(self, kind: str, attached: bool = False) -> None:
        super().__init__()
        self.kind, self.attached = kind, attached
        self.inner = sound()
        self.config = self.inner.config
        self.memory: dict[str, torch.Tensor] | None = None
        self.left: dict[str, torch.Tensor] | None = None

    def recall(self, memory: dict[str, torch.Tensor] | None) -> None:
        self.memory = memory

    def remembered(self) -> dict[str, torch.Tensor] | None:
        return self.left

    def _noted(self, ids: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor) -> None:
        words_BLD = self.inner.reformer.embeddings.word_embeddings(ids)
        last_BL = segments == segments[:, -1:]
        if self.kind == "everything":
            last_BL = torch.ones_like(last_BL)
        mean_BD = (words_BLD * last_BL[..., None]).mean(1)
        self.left = None if self.kind == "nothing" else {"mean": mean_BD.detach()}
        if self.attached and self.left is not None:
            self.left["mean"].requires_grad_()

    def logits(self, input_ids: Any, segment_ids: Any = None, position_ids: Any = None) -> Any:
        scores_BLV = self.inner.logits(input_ids, segment_ids)
        if self.memory is not None:
            first_BL = (segment_ids == 1) & (position_ids[:, :1] > 0)
            if self.kind == "for all":
                first_BL = torch.ones_like(first_BL)
            amount_B = self.memory["mean"].sum(-1)
            scores_BLV = scores_BLV + 0.1 * first_BL[..., None] * amount_B[:, None, None]
        self._noted(input_ids, segment_ids, position_ids)
        return scores_BLV

    def forward(
        self, input_ids: Any, labels: Any, segment_ids: Any = None, position_ids: Any = None
    ) -> Any:
        loss = self.inner(input_ids, labels, segment_ids)
        self._noted(input_ids, segment_ids, position_ids)
        return loss

    def begin_micro_batch(self, seed: int, first_row: int = 0) -> None:
        self.inner.begin_micro_batch(seed, first_row)

    def flops_per_token(self, sequence_length: int) -> float:
        return self.inner.flops_per_token(sequence_length)
