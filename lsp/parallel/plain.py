"""One process, or every process with the whole model (DistributedDataParallel)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradScalerKwargs
from torch import nn
from torch.optim import Optimizer

from lsp.core.errors import UserError
from lsp.parallel.config import PrecisionConfig
from lsp.parallel.engine import (
    Engine,
    Lazy,
    StepResult,
    Tensors,
    check_state_names,
    split_state_key,
)
from lsp.parallel.runtime import Runtime


class PlainEngine(Engine):
    """Device, autocast, loss scaling and DDP come from accelerate; the rest is plain torch."""

    def __init__(
        self,
        module: nn.Module,
        optimizers: list[Optimizer],
        runtime: Runtime,
        precision: PrecisionConfig,
        gradient_clip: float,
    ) -> None:
        super().__init__(module, runtime)
        self.accelerator = Accelerator(
            cpu=runtime.device.type == "cpu",
            mixed_precision="no" if precision.name == "fp32" else precision.name,
            kwargs_handlers=[
                # Gradients live in the buckets that are reduced, not beside them.
                DistributedDataParallelKwargs(
                    broadcast_buffers=False, gradient_as_bucket_view=True
                ),
                GradScalerKwargs(init_scale=precision.initial_loss_scale),
            ],
        )
        if self.accelerator.num_processes != runtime.world_size:
            raise UserError(
                f"{runtime.world_size} processes were started but accelerate sees "
                f"{self.accelerator.num_processes}; start them with torchrun"
            )
        self.optimizers = optimizers
        self.model = self.accelerator.prepare(module)
        self.scaler = self.accelerator.scaler
        self.max_norm = gradient_clip or math.inf

    def __call__(self, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum, count = self.model(**batch)
        return loss_sum, count

    def forward_backward(self, batch: Tensors, scale: float, *, last: bool) -> torch.Tensor:
        # DDP arms its reduction in forward, so the context has to span both passes.
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            loss_sum, _ = self(batch)
            self.accelerator.backward(loss_sum * scale)
        return loss_sum.detach()

    def step(self) -> StepResult:
        if self.scaler is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        # Skipping has to be the same on every process: after the reduction, the norm is.
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self.max_norm))
        applied = math.isfinite(norm)
        for optimizer in self.optimizers:
            # The scaler alone would judge each optimizer by its own gradients, and clipping has
            # spread what is not finite to all of them.
            if applied and self.scaler is not None:
                self.scaler.step(optimizer)
            elif applied:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.scaler is not None:
            self.scaler.update()
        return StepResult(norm, applied)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.module.state_dict().items():
            yield name, tensor.detach()

    def optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        names = {id(p): name for name, p in self.module.named_parameters()}
        for optimizer in self.optimizers:
            for parameter, fields in optimizer.state.items():
                for field, value in fields.items():
                    yield f"{names[id(parameter)]}/{field}", torch.as_tensor(value).detach()

    def load_optimizer_state(self, weights: Lazy, state: Lazy) -> None:
        names = {id(p): name for name, p in self.module.named_parameters()}
        check_state_names(state, set(names.values()))
        fields: dict[str, Tensors] = {}
        for key, value in state.items():
            name, field = split_state_key(key)
            fields.setdefault(name, {})[field] = value
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    own = fields.get(names[id(parameter)])
                    if own is not None:
                        optimizer.state[parameter] = {
                            field: _place(field, value, parameter) for field, value in own.items()
                        }

    def scaler_state(self) -> dict[str, Any]:
        return dict(self.scaler.state_dict()) if self.scaler is not None else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        if self.scaler is None or not state:
            return
        if "scale" not in state:  # DeepSpeed's, which has other rules for growing it
            state = self.scaler.state_dict() | {"scale": state["cur_scale"]}
        self.scaler.load_state_dict(state)


def _place(field: str, value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    # torch keeps step counters on the host unless an optimizer is fused or capturable.
    return value.clone() if field == "step" else value.to(parameter.device, copy=True)
