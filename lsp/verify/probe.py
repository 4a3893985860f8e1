"""Asks a model the same question again with other tokens, and what its loss depends on.

Everything random is the same in every pass, and a pass has the same shapes as the one before, so
the same tokens give the same bits: whatever differs is an effect of what was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import nn

from lsp.core.batch import IGNORE_INDEX, Batch
from lsp.models.interface import LanguageModel
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.verify.places import Place, find_place, vectors_of

T = TypeVar("T")

SEED = 20
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast computes matrix products in, by the name of a precision."""


class Probe:
    """A model, in training mode as it will be trained, over rows whose tokens can be exchanged.

    Args:
        model: Holds whole weights; its gradients are empty.
        rows: Whole rows, on the model's device; every process of `exchange` has the same.
        vocab_size: Tokens are drawn from 0 to this.
        exchange: Between the processes that share the rows.
        precision: A key of `DTYPES`.
        memory: What the model remembers of the rows before these.
    """

    def __init__(
        self,
        model: LanguageModel,
        rows: Batch,
        *,
        vocab_size: int,
        exchange: Exchange = WHOLE_ROWS,
        precision: str = "fp32",
        memory: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.model, self.rows, self.exchange, self.memory = model, rows, exchange, memory
        self.dtype = DTYPES[precision]
        self.device = rows.input_ids.device
        generator = torch.Generator().manual_seed(SEED)
        shift_BL = torch.randint(1, vocab_size, rows.input_ids.shape, generator=generator)
        self._others_BL = (rows.input_ids + shift_BL.to(self.device)) % vocab_size

    @cached_property
    def base(self) -> torch.Tensor:
        """Scores of the rows as they are: (B, L / degree, V)."""
        return self.scores()

    @property
    def unclear(self) -> str | None:
        """Why nothing can be said of the scores, on any process; None where something can."""
        if not self._everywhere(self.base.isfinite()):
            return "the scores are not finite: nothing can be said of them"
        if not self._everywhere(self.scores() == self.base):
            return "the same tokens give other scores each time: nothing can be said of changes"
        return None

    def _everywhere(self, holds_BlV: torch.Tensor) -> bool:
        return bool(self.exchange.whole(holds_BlV.all(-1).long()).all())

    def scores(self, where_BL: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of the positions that are here: (B, L / degree, V).

        Args:
            where_BL: (B, L) positions whose tokens are exchanged for others; None for none.
        """
        here = self._here(self._exchanged(where_BL))
        with torch.no_grad():
            return self._passed(
                lambda: self.model.logits(here.input_ids, here.segment_ids, here.position_ids)
            ).float()

    def held(self, where_BL: torch.Tensor) -> torch.Tensor | None:
        """The effects of exchanged tokens on a model that looks where it looked: (B, L).

        None for a model that looks at the same places whatever the tokens are.
        """
        try:
            if not self.model.hold_sight(True):
                return None
            self.scores()
            return self.effects(self.scores(where_BL))
        finally:
            self.model.hold_sight(False)

    def remembered(self, where_BL: torch.Tensor | None = None) -> dict[str, torch.Tensor] | None:
        """What the model remembers after the rows, with tokens exchanged as in `scores`."""
        with torch.no_grad():
            here = self._here(self._exchanged(where_BL))
            self._passed(lambda: self.model(**here.tensors()))
        return self.model.remembered()

    def effects(self, after_BlV: torch.Tensor) -> torch.Tensor:
        """Largest change of each position's scores, 0 only where every bit is the same: (B, L)."""
        before_BlV = self.base
        differs_Bl = (before_BlV != after_BlV).any(-1)
        size_Bl = (before_BlV - after_BlV).abs().amax(-1)
        # What is no number, or too small for the difference to be one, is a difference too.
        size_Bl = size_Bl.nan_to_num(torch.inf).clamp(min=torch.finfo(torch.float32).tiny)
        return self.exchange.whole(size_Bl.where(differs_Bl, 0.0).contiguous())

    def gradients(self, of_BL: torch.Tensor) -> torch.Tensor:
        """Largest gradient of the loss with respect to each embedded token: (B, L).

        Args:
            of_BL: (B, L) the positions that predict something.
        """
        labels_BL = self.rows.input_ids.where(of_BL, IGNORE_INDEX)
        here = self._here(replace(self.rows, labels=labels_BL))
        place, calls, probes = self._place, 0, list[torch.Tensor]()

        def add_probe(_: nn.Module, args: Any, output: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != place.call + 1:
                return output
            embedded = vectors_of(output)
            assert embedded is not None
            # A row for each token, and one for what is none of them.
            shape = (self.rows_here.numel() + 1, embedded.shape[-1])
            probes.append(torch.zeros(shape, dtype=embedded.dtype, device=embedded.device))
            probed = embedded + probes[0].requires_grad_()[place.slots]
            return (probed, *output[1:]) if isinstance(output, tuple) else probed

        hook = place.module.register_forward_hook(add_probe)
        try:
            loss_sum, _ = self._passed(lambda: self.model(**here.tensors()))
            # As in training, so that whatever waits for a gradient gets it.
            loss_sum.backward()
        finally:
            hook.remove()
            self.model.zero_grad(set_to_none=True)
        (probe,) = probes
        size_TD = torch.zeros_like(probe) if probe.grad is None else probe.grad.abs()
        size_Bl = size_TD[:-1].amax(-1).float().nan_to_num(torch.inf).view_as(self.rows_here)
        return self.exchange.whole(size_Bl.contiguous())

    def _exchanged(self, where_BL: torch.Tensor | None) -> Batch:
        if where_BL is None:
            return self.rows
        ids_BL = self._others_BL.where(where_BL, self.rows.input_ids)
        return replace(self.rows, input_ids=ids_BL)

    def _here(self, rows: Batch) -> Batch:
        if self.exchange.degree == 1:
            return rows
        length = rows.input_ids.shape[1] // self.exchange.degree
        first = self.exchange.first(length)
        return rows.positions(first, first + length)

    def _passed(self, forward: Callable[[], T]) -> T:
        torch.manual_seed(SEED)
        self.model.begin_micro_batch(SEED)
        self.model.recall(self.memory)
        with self._arithmetic():
            return forward()

    def _arithmetic(self) -> AbstractContextManager[Any]:
        dtype = self.dtype or torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.dtype is not None)

    @property
    def rows_here(self) -> torch.Tensor:
        """(B, L / degree) tokens of this share."""
        return self._here(self.rows).input_ids

    @cached_property
    def _place(self) -> Place:
        """Where the tokens are made vectors of."""
        here = self._here(self.rows)

        def read(ids_Bl: torch.Tensor) -> None:
            with torch.no_grad():
                self._passed(lambda: self.model.logits(ids_Bl, here.segment_ids, here.position_ids))

        return find_place(self.model, here.input_ids, read)


@contextmanager
def undisturbed(model: LanguageModel) -> Iterator[None]:
    """Puts a model into training mode, and leaves it and the global generators as they were."""
    assert all(p.grad is None for p in model.parameters())
    training = model.training
    with torch.random.fork_rng():
        model.train()
        try:
            yield
        finally:
            model.train(training)
            model.hold_sight(False)
            model.recall(None)
