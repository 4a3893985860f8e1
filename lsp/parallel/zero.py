"""ZeRO-1, 2 and 3 (1910.02054), offloaded or not: DeepSpeed's engine, prepared by accelerate.

Whole tensors are read and written through DeepSpeed's per-parameter access, so that a checkpoint
does not depend on how many processes wrote it or at which stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import deepspeed.ops
import torch
from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import nn
from torch.optim import Optimizer

from lsp.core.errors import UserError
from lsp.parallel.collectives import together
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.deepspeed_config import deepspeed_config, zero_stage
from lsp.parallel.engine import (
    Engine,
    Lazy,
    StepResult,
    Tensors,
    check_state_names,
    split_state_key,
)
from lsp.parallel.offload import check_buffers, cpu_adam, load_extensions, own_folder
from lsp.parallel.runtime import Runtime


class ZeroEngine(Engine):
    """DeepSpeed shards; the loop stays the same."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        runtime: Runtime,
        parallelism: ParallelismConfig,
        precision: PrecisionConfig,
        *,
        gradient_clip: float,
        micro_batch: int,
    ) -> None:
        super().__init__(module, runtime)
        # DeepSpeed would compile this shared-memory extension for a minute; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.stage = zero_stage(parallelism, precision)
        self.offloaded = parallelism.sharding.optimizer != "device"
        if self.offloaded:
            check_buffers(parallelism, module, runtime.world_size)
            together(lambda: load_extensions(parallelism))
            optimizer = cpu_adam(optimizer)
            parallelism = together(lambda: own_folder(parallelism))
        config = deepspeed_config(
            parallelism,
            precision,
            micro_batch=micro_batch,
            world_size=runtime.world_size,
            gradient_clip=gradient_clip,
            pin_memory=runtime.device.type == "cuda",
        )
        backend = "nccl" if runtime.device.type == "cuda" else "gloo"
        # Neither `cpu=True` nor another set-up: those run silently as plain DDP or as several
        # runs of one process.
        accelerator = Accelerator(
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config),
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
        )
        if (
            accelerator.distributed_type != DistributedType.DEEPSPEED
            or accelerator.num_processes != runtime.world_size
        ):
            raise UserError(
                f"parallelism={parallelism.strategy} asked for DeepSpeed on {runtime.world_size} "
                f"processes but accelerate set up {accelerator.distributed_type} on "
                f"{accelerator.num_processes}; start the processes with torchrun"
            )
        whole = {} if precision.name == "fp32" else _copies(self._learned())
        # DeepSpeed has masters only of what it updates; the rest stays as it came.
        self._frozen = _copies(
            (n, p)
            for n, p in module.named_parameters(remove_duplicate=False)
            if not p.requires_grad
        )
        self.engine, _ = accelerator.prepare(module, optimizer)
        self.zero = self.engine.optimizer
        for name, parameter in self._learned():
            # DeepSpeed makes the fp32 masters from weights that it has already rounded.
            if name in whole:
                self._set(parameter, whole.pop(name), None)

    def _learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self.module.named_parameters() if p.requires_grad)

    def __call__(self, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum, count = self.engine(**batch)
        return loss_sum, count

    def forward_backward(self, batch: Tensors, scale: float, *, last: bool) -> torch.Tensor:
        self.engine.set_gradient_accumulation_boundary(last)
        loss_sum, _ = self(batch)
        self.engine.backward(loss_sum.float() * scale, scale_wrt_gas=False)
        if not last:
            self.engine.step()  # counts the micro-batch; updates nothing before the boundary
        return loss_sum.detach()

    def step(self) -> StepResult:
        self.engine.step()
        applied = bool(self.engine.was_step_applied())
        norm = self.engine.get_global_grad_norm()
        if not applied:
            return StepResult(math.inf, False)
        return StepResult(float(norm) if norm is not None else 0.0, True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.zero.param_groups
        return groups

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        # Tied weights have several names, and a checkpoint holds each.
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        for name in self.module.state_dict():
            if name in self._frozen:
                yield name, self._frozen[name]
            elif name in parameters:
                yield name, safe_get_full_fp32_param(parameters[name]).detach()
            else:
                buffer = buffers[name].detach()
                yield name, buffer.float() if buffer.is_floating_point() else buffer

    def optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        if not self._fields():
            return
        self._link_state()
        step = torch.tensor(self._step_count(), dtype=torch.float32)
        for name, parameter in self._learned():
            yield f"{name}/step", step
            for field in self._fields():
                yield f"{name}/{field}", safe_get_full_optimizer_state(parameter, field).detach()

    def _flat_partitions(self) -> list[torch.Tensor]:
        """This process's fp32 partitions: what the inner optimizer keeps its state for."""
        partitions: list[torch.Tensor] = (
            self.zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else self.zero.single_partition_of_fp32_groups
        )
        return partitions

    def _fields(self) -> list[str]:
        """Names of the tensor fields of the optimizer's state; none before the first step."""
        for flat in self._flat_partitions():
            fields = self.zero.optimizer.state.get(flat, {})
            if fields:
                return [
                    k for k, v in fields.items() if torch.is_tensor(v) and v.shape == flat.shape
                ]
        return []

    def _step_count(self) -> float:
        return float(self.zero.optimizer.state[self._flat_partitions()[0]]["step"])

    def load_optimizer_state(self, weights: Lazy, state: Lazy) -> None:
        parameters = dict(self._learned())
        check_state_names(state, set(parameters))
        self._make_state({split_state_key(key)[1] for key in state}, state)
        for name, parameter in parameters.items():
            self._set(parameter, weights[name], None)
            for field in self._fields():
                # A parameter that has never had a gradient has no state elsewhere: zeros, here.
                if f"{name}/{field}" in state:
                    self._set(parameter, state[f"{name}/{field}"], field)

    def _make_state(self, fields: set[str], state: Lazy) -> None:
        """Allocates the inner optimizer's state, which torch does only at its first step."""
        if not fields:
            return
        steps = {float(value) for key, value in state.items() if key.endswith("/step")}
        if len(steps) != 1:
            raise UserError(
                "the checkpoint counts different steps for different parameters, which ZeRO "
                "cannot hold; resume with parallelism=single or ddp"
            )
        (step,) = steps
        for number, flat in enumerate(self._flat_partitions()):
            on_disk = self._on_disk(number)
            if on_disk:
                self.zero._optimizer_states_and_gradient_swap_in(number)
            # DeepSpeed's CPU optimizer counts in plain numbers, torch's in tensors.
            self.zero.optimizer.state[flat] = {
                "step": int(step) if self.offloaded else torch.tensor(step)
            } | {field: torch.zeros_like(flat) for field in sorted(fields - {"step"})}
            if on_disk:
                self.zero._optimizer_states_and_gradient_swap_out(number)
        self._link_state()

    def _on_disk(self, group: int) -> bool:
        """Whether a group of weights, with its state, is on a disk between uses."""
        return self.stage == 3 and bool(self.zero._swappable_optimizer_subgroup(group))

    def _link_state(self) -> None:
        """Makes the state reachable per parameter (ZeRO-1 and 2).

        DeepSpeed does so right after the step of the first parameter group, when the others
        have no state yet, and never again.
        """
        if self.stage < 3:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: nn.Parameter, value: torch.Tensor, field: str | None) -> None:
        if self.stage < 3:
            value = value.to(self.runtime.device, torch.float32)
            if field is None:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, field)
            return
        # Partitions are equal in size, so the last one may be longer than what is left.
        partition: Any = parameter.ds_tensor  # type: ignore[attr-defined]
        size = partition.ds_numel
        part = value.flatten()[size * self.runtime.rank : size * (self.runtime.rank + 1)]
        part = nn.functional.pad(part, (0, size - part.numel()))
        part = part.to(self.runtime.device, torch.float32)
        # As safe_set_local_fp32_param, which refuses weights that are on a disk.
        own, group = self.zero._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=field
        )
        own.data.copy_(part)
        if self._on_disk(group):
            self.zero._optimizer_states_and_gradient_swap_out(group)

    def scaler_state(self) -> dict[str, Any]:
        scaler = getattr(self.zero, "loss_scaler", None)
        if scaler is None or not getattr(scaler, "dynamic", False):
            return {}
        return {k: v for k, v in vars(scaler).items() if isinstance(v, (int, float, bool))}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        scaler = getattr(self.zero, "loss_scaler", None)
        if not state or not getattr(scaler, "dynamic", False):
            return
        if "cur_scale" not in state:  # torch's, which has other rules for growing it
            state = {"cur_scale": state["scale"]}
        vars(scaler).update(state)


def _copies(parameters: Iterable[tuple[str, nn.Parameter]]) -> Tensors:
    return {name: p.detach().clone() for name, p in parameters}
