"""A published head by itself: scores of some positions, from their hidden states.

The published class is asked for its scores with a stand-in for its body, which answers with the
hidden states at hand. So whatever the class does to them (scales, transforms, caps) is done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.models.layers.losses import tiled_loss
from lsp.models.layers.tied import WaitingGradient, WaitingGradients
from lsp.models.memory import MemoryConfig

SCORES = ("logits", "prediction_logits")
"""What published outputs call them."""


class StandIn(nn.Module):
    """In the place of a body: answers with what it was told to, whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.answer


class Answer(tuple[torch.Tensor, torch.Tensor]):
    """A body's output: hidden states (B, K, D), and something pooled (B, D) for who asks for it."""

    @property
    def last_hidden_state(self) -> torch.Tensor:
        """(B, K, D)."""
        return self[0]

    @property
    def pooler_output(self) -> torch.Tensor:
        """(B, D)."""
        return self[1]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return  # None: no caches, attentions, …


class Head(ABC):
    """What makes scores of hidden states, apart from the body that makes hidden states of tokens.

    A weight that both have keeps what the head adds to its gradient until the body has its own.

    Args:
        model: The published model.
        outside: Modules of the head, without those inside them.
        inside: Modules of the body, in the same way.
    """

    def __init__(
        self, model: nn.Module, outside: Sequence[nn.Module], inside: Sequence[nn.Module]
    ) -> None:
        self.model = model
        within = {id(p) for module in inside for p in module.parameters(recurse=False)}
        learned = (p for module in outside for p in module.parameters(recurse=False))
        self._own = list({id(p): p for p in learned if id(p) not in within}.values())
        self._waiting: dict[int, WaitingGradient] = {}
        self._goes_on = False
        readers = {id(m): reader for reader in outside for m in _read_by(reader)}
        for module in outside:
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in within:
                    reader = readers.get(id(module), module)
                    read_waiting(module, name, self._waiting_for(parameter), reader)
        for module in inside:
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in self._waiting:
                    self._join_waiting(module, name, self._waiting[id(parameter)])

    def _waiting_for(self, parameter: nn.Parameter) -> WaitingGradient:
        return self._waiting.setdefault(id(parameter), WaitingGradient())

    @abstractmethod
    def scores(self, hidden_BKD: torch.Tensor) -> torch.Tensor:
        """Scores of positions: (B, K, D) hidden states to (B, K, V)."""

    def loss(
        self,
        hidden_BLD: torch.Tensor,
        labels_BL: torch.Tensor,
        memory: MemoryConfig,
        *,
        tiles: int | None = None,
        smoothing: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed cross-entropy and number of predictions, tile by tile.

        Args:
            hidden_BLD: (B, L, D) hidden states of the body.
            labels_BL: (B, L) what each position predicts, -100 for nothing.
            memory: How many tiles.
            tiles: The same as a number, where it does not follow from the hidden states.
            smoothing: Share of each label that is spread over the vocabulary.
        """

        def loss_of_tile(
            hidden_BKD: torch.Tensor, labels_BK: torch.Tensor, index: int
        ) -> torch.Tensor:
            scores_BKV = self.scores(hidden_BKD)
            return F.cross_entropy(
                scores_BKV.flatten(0, 1).float(),
                labels_BK.flatten(),
                ignore_index=IGNORE_INDEX,
                reduction="sum",
                label_smoothing=smoothing,
            )

        waiting = self._waiting.values()
        learned = [*self._own, *(one.anchor for one in waiting)]
        tiles = self.tiles(hidden_BLD, memory) if tiles is None else tiles
        return tiled_loss(
            loss_of_tile, [hidden_BLD], labels_BL, tiles, learned, WaitingGradients(waiting)
        )

    def tiles(self, hidden_BLD: torch.Tensor, memory: MemoryConfig) -> int:
        """In how many pieces the scores of rows are computed."""
        rows, length, width = hidden_BLD.shape
        return memory.head_tiles_for(rows, length, width, self.vocab_size, hidden_BLD.device.type)

    @property
    def vocab_size(self) -> int:
        """Scores of a position."""
        size: int = self.model.config.vocab_size  # type: ignore[union-attr, assignment]
        return size

    @contextmanager
    def goes_on(self) -> Iterator[None]:
        """For one more pass through weights of the body: what is waiting for them stays."""
        self._goes_on = True
        try:
            yield
        finally:
            self._goes_on = False

    def _join_waiting(self, module: nn.Module, name: str, waiting: WaitingGradient) -> None:
        """Makes a module of the body add what is waiting to the gradient of its weight."""
        forward: Callable[..., Any] = module.forward

        def joining(*args: Any, **kwargs: Any) -> Any:
            if not self._goes_on:
                waiting.join(module._parameters[name])  # type: ignore[arg-type]
            return forward(*args, **kwargs)

        module.forward = joining


class PublishedHead(Head):
    """The head of a published model, as its class has it.

    Args:
        model: The published model.
        path: Of its body within it.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        self.path = path
        inside = dict.fromkeys(model.get_submodule(path).modules())
        super().__init__(model, [m for m in model.modules() if m not in inside], [*inside])

    @property
    def body(self) -> Any:
        """The module whose hidden states the head reads."""
        return self.model.get_submodule(self.path)

    def scores(self, hidden_BKD: torch.Tensor) -> torch.Tensor:
        ids_BK = hidden_BKD.new_zeros(hidden_BKD.shape[:2], dtype=torch.long)
        with self._stood_in(Answer((hidden_BKD, hidden_BKD[:, 0]))):
            found = self.model(input_ids=ids_BK, return_dict=True)
        for name in SCORES:
            if name in found:
                scores: torch.Tensor = found[name]
                return scores
        raise AssertionError(f"{type(self.model).__name__} gives no scores")

    @contextmanager
    def _stood_in(self, answer: Any) -> Iterator[None]:
        parent_path, _, name = self.path.rpartition(".")
        modules = self.model.get_submodule(parent_path)._modules
        body = modules[name]
        modules[name] = StandIn(answer)
        try:
            yield
        finally:
            modules[name] = body


def _read_by(module: nn.Module) -> list[nn.Module]:
    """Modules that another does not call, but whose weights it reads."""
    if type(module).__name__ == "MobileBertLMPredictionHead":
        return [module.decoder]  # type: ignore[list-item]
    return []


def read_waiting(module: nn.Module, name: str, waiting: WaitingGradient, reader: nn.Module) -> None:
    """Makes a module of the head keep the gradient of a weight that is not its own.

    Args:
        module: The module that has the weight.
        name: Of the weight.
        waiting: What keeps the gradient.
        reader: The module in whose call the weight is read.
    """
    forward: Callable[..., Any] = reader.forward

    def reading(*args: Any, **kwargs: Any) -> Any:
        # Here, not before: where weights are sharded, hooks have only now made it whole. What
        # stands in the instance is found before its parameters.
        module.__dict__[name] = waiting.of(module._parameters[name])  # type: ignore[arg-type]
        try:
            return forward(*args, **kwargs)
        finally:
            del module.__dict__[name]

    reader.forward = reading
