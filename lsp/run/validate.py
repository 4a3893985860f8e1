"""Checks across the parts of a configuration, made before any heavy work.

Each part checks itself (`__post_init__`); here is what only their combination decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lsp.core.errors import UserError, require, unknown_choice
from lsp.core.objectives import DECODER, POSITION_WISE
from lsp.core.ranks import world_size
from lsp.models.hub.config import HubConfig
from lsp.models.memory import check_residual
from lsp.run.compose import in_architecture
from lsp.run.config import RunConfig

if TYPE_CHECKING:
    from lsp.models.interface import Architecture

WHOLE_MATRICES = ("AdafactorConfig", "MuonConfig")
"""Optimizers whose update needs whole weight matrices, which ZeRO does not leave in one place."""


def validate_data(config: RunConfig) -> None:
    """Checks what shapes the prepared data.

    Raises:
        UserError: The objective, the packing or the length does not fit the architecture.
    """
    from lsp.models import registry

    architecture = registry.get(registry.name_of(config.architecture))
    objectives = architecture.objectives(config.architecture)
    if config.objective.name not in objectives:
        raise UserError(
            f"objective={config.objective.name} is not possible with "
            f"{_named(config)}: choose one of {', '.join(objectives)}"
        )
    _check_documents(config, architecture)
    _check_objective(config)
    _check_order(config, architecture)
    check_residual(config.memory.residual, architecture.residuals(config.architecture))
    try:
        # The tokenizer may not exist yet: here the vocabulary is taken to fit.
        completed = architecture.resolve(
            config.architecture,
            vocab_size=config.architecture.vocab_size,
            sequence_length=config.longest_row,
            objective=config.objective.name,
        )
        if config.phases:  # which all have to do with what the longest needs
            architecture.resolve(
                completed,
                vocab_size=completed.vocab_size,
                sequence_length=config.sequence_length,
                objective=config.objective.name,
            )
    except ValueError as error:
        raise in_architecture(error, type(config.architecture)) from error


def _check_objective(config: RunConfig) -> None:
    objective = config.objective
    require(
        objective.name != "translation" or config.data.target_field is not None,
        "objective=translation needs pairs of texts: name the fields of a source that has both, "
        "e.g. data=jsonl data.field=en data.target_field=de",
    )
    require(
        objective.name != "translation" or config.packing.strategy != "concatenate",
        "packing=concatenate cuts pairs of texts where rows end, and objective=translation reads "
        "whole ones: use packing=best_fit or one_per_row",
    )
    require(
        objective.decoder_length is None or objective.decoder_length <= config.sequence_length,
        f"objective.decoder_length={objective.decoder_length} is more than "
        f"sequence_length={config.sequence_length}: use that, less, or null",
    )
    if isinstance(config.architecture, HubConfig) and objective.name in DECODER:
        start, needed = objective.decoder_start_role, config.architecture.row.start
        require(
            needed in ("", start),
            f"objective.decoder_start={start} is not possible with "
            f"model_type={config.architecture.model_type}: use objective.decoder_start={needed}",
        )


def _check_documents(config: RunConfig, architecture: Architecture) -> None:
    apart = architecture.segments(config.architecture)
    mixed = getattr(config.architecture, "mix_documents", None)
    name = getattr(config.architecture, "model_type", None)
    which = f"architecture={architecture.name}" + (f" architecture.model_type={name}" * bool(name))
    instead = "" if mixed is None else ", or architecture.mix_documents=true to let them mix"
    require(
        apart or bool(mixed) or config.packing.strategy == "one_per_row",
        f"packing={config.packing.strategy} puts several documents into a row, and {which} cannot "
        f"keep them apart: use packing=one_per_row{instead}",
    )


def _named(config: RunConfig) -> str:
    """The words that choose the architecture."""
    from lsp.models import registry

    name = registry.name_of(config.architecture)
    title = registry.title_of(config.architecture)
    return f"architecture={name}" + (f" architecture.model_type={title}" if title != name else "")


def _check_order(config: RunConfig, architecture: Architecture) -> None:
    require(
        config.trainer.order != "contiguous" or architecture.remembers,
        f"trainer.order=contiguous is for architectures that remember the rows before, and "
        f"architecture={architecture.name} does not: use trainer.order=shuffled or auto",
    )
    require(
        config.packing.strategy == "concatenate"
        or not config.trainer.contiguous(architecture.remembers),
        f"packing={config.packing.strategy} takes apart the text that "
        f"architecture={architecture.name} remembers from row to row: use packing=concatenate, "
        "or trainer.order=shuffled for rows without a memory",
    )


def validate(config: RunConfig) -> None:
    """Checks everything that can be known before the data is prepared and the model built.

    Raises:
        UserError: A combination cannot work; the message names values that would.
    """
    processes = world_size()
    _check_strategy(config, processes)
    validate_data(config)
    _check_sequence(config, processes)
    _check_tokens_per_step(config, processes)
    _check_schedule(config)
    _check_device(config)


def _check_strategy(config: RunConfig, processes: int) -> None:
    strategy = config.parallelism.strategy
    require(
        strategy != "single" or processes == 1,
        f"parallelism=single is for one process, and {processes} were started: "
        "use parallelism=ddp, zero1, zero2, zero3 or auto",
    )
    partition = config.parallelism.hpz_partition_size
    require(
        processes % partition == 0,
        f"parallelism.hpz_partition_size={partition} does not divide the number of processes, "
        f"{processes}: use 1 (none), or how many there are on one machine",
    )
    optimizer = type(config.optimizer).__name__
    require(
        config.parallelism.zero_stage == 0 or optimizer not in WHOLE_MATRICES,
        f"optimizer={optimizer.removesuffix('Config').lower()} needs whole weight matrices, which "
        f"parallelism={strategy} takes apart: use optimizer=adamw, or parallelism=ddp",
    )


def _check_sequence(config: RunConfig, processes: int) -> None:
    from lsp.models import registry

    degree = config.parallelism.sequence
    divisors = ", ".join(str(n) for n in range(1, processes + 1) if processes % n == 0)
    require(
        processes % degree == 0,
        f"parallelism.sequence={degree} does not divide the number of processes, {processes}: "
        f"use one of {divisors}, or start a multiple of {degree} processes",
    )
    require(
        degree == 1 or config.objective.name in POSITION_WISE,
        f"parallelism.sequence={degree} shares the positions of a row, and "
        f"objective={config.objective.name} gives more than a value for each: use "
        f"parallelism.sequence=1, or one of {', '.join(POSITION_WISE)}",
    )
    architecture = registry.get(registry.name_of(config.architecture))
    architecture.check_shares(config.architecture, config.sequence_length, degree)


def _check_device(config: RunConfig) -> None:
    import torch

    from lsp.parallel.offload import check_offload

    device = config.parallelism.device
    has_gpu = torch.cuda.is_available()
    require(
        device != "cuda" or has_gpu,
        "parallelism.device=cuda: this machine has no CUDA device that torch can use; "
        "use parallelism.device=auto or cpu",
    )
    # DeepSpeed 0.19 takes weights on a disk for bf16 wherever the device has no fp16.
    require(
        config.parallelism.strategy != "zero3_nvme"
        or not config.parallelism.offload.weights
        or config.precision.name != "fp32"
        or (has_gpu and device != "cpu"),
        "parallelism=zero3_nvme on a CPU keeps weights on the disk in bf16 alone: use "
        "precision=bf16, or parallelism.offload.weights=false",
    )
    for key in ("quantized_weights", "quantized_gradients"):
        require(
            not getattr(config.parallelism, key) or (has_gpu and device != "cpu"),
            f"parallelism.{key}=true needs CUDA, and this run is on a CPU: use false",
        )
    require(
        config.precision.name != "fp16" or (has_gpu and device != "cpu"),
        "precision=fp16 needs a GPU: use precision=bf16 or fp32 on a CPU",
    )
    check_offload(config.parallelism)


def _check_tokens_per_step(config: RunConfig, processes: int) -> None:
    """The batch is what the user says it is, on any number of processes, or the run is refused."""
    tokens, length = config.tokens_per_step, config.sequence_length
    sequence = config.parallelism.sequence
    degree = processes // sequence
    among = f"{processes} process{'es' if processes > 1 else ''}"
    if sequence > 1:
        among += f" / parallelism.sequence={sequence}"
    share = length * degree
    below = max(tokens // share, 1) * share
    nearest = f"{below}" if below > tokens else f"{below} or {below + share}"
    require(
        tokens % share == 0,
        f"tokens_per_step={tokens} is not a multiple of {share} (sequence_length={length} x "
        f"{among}): use {nearest}",
    )
    rows, micro_batch = tokens // share, config.trainer.micro_batch
    require(
        micro_batch == 0 or rows % micro_batch == 0,
        f"trainer.micro_batch={micro_batch} does not divide the {rows} rows of one process in a "
        f"step: use 0 (automatic) or one of {_divisors(rows)}",
    )


def _divisors(number: int) -> str:
    divisors = [n for n in range(1, min(number, 1024) + 1) if number % n == 0]
    return ", ".join(map(str, dict.fromkeys([*divisors[:12], number])))


def _check_schedule(config: RunConfig) -> None:
    schedule, steps = config.schedule, config.trainer.max_steps - config.first_step
    key = "steps" if config.phases else "trainer.max_steps"
    require(
        schedule.warmup_steps < steps,
        f"schedule.warmup_steps={schedule.warmup_steps} is not below {key}={steps}: "
        f"use {steps // 10}, or train longer",
    )
    if schedule.name == "warmup_stable_decay":
        room = steps - schedule.warmup_steps
        require(
            schedule.decay_steps <= room,
            f"schedule.decay_steps={schedule.decay_steps} does not fit between "
            f"schedule.warmup_steps={schedule.warmup_steps} and {key}={steps}: "
            f"use {room} or less, or 0 for a tenth of the run",
        )
    else:
        require(
            schedule.decay_steps == 0,
            f"schedule.decay_steps={schedule.decay_steps} is read only by "
            f"schedule=warmup_stable_decay, not by {schedule.name}",
        )


def require_run(run: str) -> None:
    """Checks that a folder is that of a run.

    Raises:
        UserError: It is not; the message names runs that are there.
    """
    folder = Path(run)
    if (folder / "config.yaml").is_file():
        if folder.name.startswith("step-"):
            raise UserError(
                f"run={run} is one checkpoint: write run={folder.parent} "
                f"checkpoint={folder.name.removeprefix('step-').lstrip('0') or '0'}"
            )
        return
    runs = {
        str(path.parent)
        for parent in (folder.parent, Path("checkpoints"))
        for path in parent.glob("*/config.yaml")
    }
    if runs:
        raise unknown_choice("run", run, runs)
    raise UserError(f"run={run} is not the folder of a run, and there is none beside it")
