"""One interface over the ways to run a model: plain, DistributedDataParallel, ZeRO."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lsp.core.errors import UserError
from lsp.parallel.runtime import Runtime

Tensors = dict[str, torch.Tensor]
Lazy = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class StepResult:
    """What became of an optimizer step.

    Attributes:
        gradient_norm: Global norm before clipping; not finite where the step was skipped.
        applied: False where the gradients were not finite and nothing was changed.
    """

    gradient_norm: float
    applied: bool


class Engine(ABC):
    """Runs forward, backward and step of a model under a parallelism strategy.

    Attributes:
        module: The model itself, for its attributes and methods; call the engine to run it.
        runtime: Device and number of this process.
    """

    module: nn.Module

    def __init__(self, module: nn.Module, runtime: Runtime) -> None:
        self.module = module
        self.runtime = runtime

    @abstractmethod
    def __call__(self, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sum and count of a micro-batch, under the run's precision."""

    @abstractmethod
    def forward_backward(self, batch: Tensors, scale: float, *, last: bool) -> torch.Tensor:
        """Runs a micro-batch and adds the gradients of `scale` times its loss sum.

        Gradients are averaged over processes at the last micro-batch of a step, so `scale` has
        to hold the number of processes.

        Args:
            batch: Fields of a `Batch`, on the device.
            scale: Factor of the loss sum.
            last: Whether this is the last micro-batch of the step.

        Returns:
            The loss sum, detached (fp32 scalar).
        """

    @abstractmethod
    def step(self) -> StepResult:
        """Clips, updates the weights unless a gradient is not finite, and clears gradients."""

    @property
    @abstractmethod
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizers' groups, whose `lr` the schedule sets."""

    @abstractmethod
    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole fp32 weights by name, one at a time; every process must iterate to the end."""

    @abstractmethod
    def optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole optimizer state as `<parameter>/<field>`; every process must iterate."""

    @abstractmethod
    def load_optimizer_state(self, weights: Lazy, state: Lazy) -> None:
        """Sets what `weights` and `optimizer_state` gave, at this or any number of processes.

        The tensors may come from files, read when they are asked for.

        The weights are already in the model; where low-precision weights have fp32 masters,
        this sets the masters.
        """

    @abstractmethod
    def scaler_state(self) -> dict[str, Any]:
        """State of the dynamic loss scale as plain numbers; empty where there is none."""

    @abstractmethod
    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Sets what `scaler_state` gave."""


def split_state_key(key: str) -> tuple[str, str]:
    """(`parameter`, `field`) of a key of `Engine.optimizer_state`."""
    name, _, field = key.rpartition("/")
    return name, field


def check_state_names(state: Lazy, names: set[str]) -> None:
    """Refuses optimizer state of another model.

    Raises:
        UserError: If the state names a parameter that the model lacks.
    """
    unknown = sorted({split_state_key(key)[0] for key in state} - names)
    if unknown:
        raise UserError(
            f"the checkpoint's optimizer state has {len(unknown)} parameter(s) that this model "
            f"lacks, the first is {unknown[0]}; use the configuration the run was started with"
        )
