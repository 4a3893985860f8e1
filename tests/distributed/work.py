"""What the processes of a distributed test do: small trainings through an engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import cpuinfo
import torch

from lsp.checkpointing.config import CheckpointConfig
from lsp.checkpointing.saver import Saver
from lsp.checkpointing.snapshot import TrainState, read_snapshot
from lsp.checkpointing.store import CheckpointStore
from lsp.data.batches import Share
from lsp.parallel.collectives import sum_over_ranks
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.engine import Engine
from lsp.parallel.prepare import prepare_engine
from lsp.parallel.rehearsal import dry_run
from lsp.parallel.runtime import Runtime, forget_engine, runtime
from lsp.training.config import AdamWConfig
from lsp.training.lanes import Lanes
from lsp.training.optimizers import build_optimizers, set_learning_rate
from tests.training.tiny import batch, longformer, mega, nezha, reformer, transformer_xl, with_pairs

ROWS = 4
MODELS = {
    "reformer": reformer,
    "longformer": longformer,
    "longformer, reversible": partial(longformer, residual="reversible"),
    "transformer_xl": transformer_xl,
    "mega": mega,
    "nezha, pairs": partial(nezha, sentence_pairs=True),
}

# DeepSpeed's CPU optimizer asks each time it is made, and the answer takes a second.
cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)


@dataclass(frozen=True)
class Job:
    """One small training.

    Attributes:
        architecture: Of the tiny model.
        strategy: Of parallelism.
        accumulation: Micro-batches of a step, in each process.
        residual: How the model keeps its activations.
        precision: `fp32` or `bf16`.
        dry_run: Whether a micro-batch is computed for nothing first.
        first: Steps done before: those of the checkpoint it begins from.
        last: Step after which it ends.
        poisoned: Steps whose loss is NaN, on one process alone.
        load: Folder of the run it continues.
        save: Folder where it leaves a checkpoint.
        dropout: Of the hidden layers.
    """

    strategy: str = "single"
    accumulation: int = 1
    residual: str = "reversible"
    precision: str = "fp32"
    dry_run: bool = False
    first: int = 0
    last: int = 20
    poisoned: tuple[int, ...] = ()
    load: str | None = None
    save: str | None = None
    dropout: float = 0.0
    architecture: str = "reformer"


@dataclass
class Outcome:
    """What a training gave; on every process the same."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    applied: list[bool] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer: dict[str, torch.Tensor] = field(default_factory=dict)
    partitioned: float = 0.0


def train(jobs: Sequence[Job]) -> list[Outcome]:
    """Trains one after the other, in the same group of processes."""
    grouped = next((job.strategy for job in jobs if job.strategy != "single"), "single")
    outcomes = []
    with runtime(ParallelismConfig(strategy=grouped, device="cpu")) as place:
        for job in jobs:
            forget_engine()
            outcomes.append(_train(job, place))
    return outcomes


def _train(job: Job, place: Runtime) -> Outcome:
    engine = _engine(job, place)
    outcome = Outcome()
    held = sum(p.numel() for p in engine.module.parameters())
    if job.dry_run:
        _rehearse(engine, place, job)
    size = ROWS // place.world_size // job.accumulation
    lanes = Lanes(Share(place.rank, place.world_size, ROWS, size), None, place.device)
    for step in range(job.first, job.last):
        set_learning_rate(engine.param_groups, 1.0 - step / 40)
        loss, result = _step(engine, place, job, step, lanes)
        outcome.losses.append(loss)
        outcome.norms.append(result.gradient_norm)
        outcome.applied.append(result.applied)
    outcome.weights = {name: value.clone() for name, value in engine.weights()}
    outcome.optimizer = {name: value.clone() for name, value in engine.optimizer_state()}
    outcome.partitioned = 1 - held / sum(v.numel() for v in outcome.weights.values())
    if job.save is not None:
        saver = Saver(CheckpointStore(Path(job.save)), engine, CheckpointConfig(), print)
        saver.save(TrainState(step=job.last), "")
        saver.finish()
    return outcome


def _engine(job: Job, place: Runtime) -> Engine:
    parallelism = ParallelismConfig(
        strategy=job.strategy, device="cpu", param_persistence_threshold=0
    )
    torch.manual_seed(0)
    dropout = "dropout" if job.architecture == "transformer_xl" else "hidden_dropout_prob"
    model = MODELS[job.architecture](job.residual, **{dropout: job.dropout})
    snapshot = None
    if job.load is not None:
        path = CheckpointStore(Path(job.load)).latest()
        assert path is not None
        snapshot = read_snapshot(path)
        model.load_state_dict(snapshot.weights)
    engine = prepare_engine(
        model,
        build_optimizers(model, AdamWConfig(learning_rate=1e-2)),
        place,
        parallelism,
        PrecisionConfig(name=job.precision),
        gradient_clip=1.0,
        micro_batch=ROWS // place.world_size // job.accumulation,
    )
    if snapshot is not None:
        engine.load_optimizer_state(snapshot.weights, snapshot.optimizer)
    return engine


def _rehearse(engine: Engine, place: Runtime, job: Job) -> None:
    size = ROWS // place.world_size // job.accumulation
    engine.module.train()
    engine.module.begin_micro_batch(0)
    dry_run(engine, batch(job.first, ROWS).rows(0, size).tensors(), reserve=2**20)


def _step(engine: Engine, place: Runtime, job: Job, step: int, lanes: Lanes) -> tuple[float, Any]:
    whole = batch(step, ROWS)
    if "pairs" in job.architecture:
        whole = with_pairs(whole)
    per_rank = ROWS // place.world_size
    size = per_rank // job.accumulation
    scale = place.world_size / int(whole.num_predicted)
    if step in job.poisoned and place.rank == place.world_size - 1:
        scale = math.nan
    engine.module.train()
    total = 0.0
    for number in range(job.accumulation):
        first = place.rank * per_rank + number * size
        engine.module.recall(lanes[number])
        engine.module.begin_micro_batch(step, first)
        part = whole.rows(first, first + size).tensors()
        total += float(engine.forward_backward(part, scale, last=number == job.accumulation - 1))
        lanes.keep(number, engine.module.remembered())
    lanes.move_on(remember=True)
    result = engine.step()
    (total,) = sum_over_ranks([total], place.device)
    return total / int(whole.num_predicted), result
