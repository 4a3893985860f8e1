"""Does the curve depend on how the work is divided? Every strategy beside one process.

python benchmarks/strategies.py                                  # every row; writes the result
python benchmarks/strategies.py --strategies zero3 --meshes 1x2  # a part; only prints

A small model of each architecture is trained on packed rows, on CPU with gloo, in fp32, under
every combination of strategy, mesh (processes that share rows x processes that share positions),
memory and accumulation. The reference is one process, plain autograd, no accumulation.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from benchmarks._common import save, stamp, table
from benchmarks._small_models import CONFIGS, batches_of, model_of
from lsp.data.batches import Share, TrainingBatches
from lsp.models.interface import LanguageModel
from lsp.parallel.collectives import sum_over_ranks
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.engine import Engine
from lsp.parallel.prepare import prepare_engine
from lsp.parallel.runtime import Runtime, forget_engine, runtime
from lsp.training.config import AdamWConfig, ScheduleConfig
from lsp.training.lanes import Lanes
from lsp.training.optimizers import build_optimizers, set_learning_rate
from lsp.training.schedule import learning_rate_fraction

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero3_offload")
MESHES = ("2x1", "1x2", "2x2")
LEANEST = {"reformer": "reversible", "longformer": "recomputed", "transformer_xl": "recomputed"}
"""What the layers keep at least, by architecture."""
BOUND = 1e-4

ROWS = 8
PRELOADED = ["lsp.parallel.zero", "lsp.parallel.plain", "lsp.models.registry", "torch._dynamo"]


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes:
        strategy: Of parallelism.
        residual: What the layers keep.
        accumulation: Micro-batches of a step.
        steps: Optimizer steps.
        architecture: Of the model.
    """

    strategy: str = "single"
    residual: str = "stored"
    accumulation: int = 1
    steps: int = 10
    architecture: str = "reformer"


@dataclass
class Curve:
    """What a training left: its losses, its last weights."""

    losses: list[float] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def differences(self, other: Curve) -> tuple[float, float]:
        """Largest relative difference of a loss, and of a weight by the largest of its tensor.

        What is added to all keys changes no softmax: a key's bias has a gradient of mere rounding,
        of which AdamW makes steps. It is left out.
        """
        assert self.weights.keys() == other.weights.keys()
        pairs = zip(self.losses, other.losses, strict=True)
        loss = max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)
        weight = max(
            float((self.weights[name] - value).abs().max() / value.abs().max())
            for name, value in other.weights.items()
            if not name.endswith(("key.bias", "key_global.bias"))
        )
        return loss, weight


def train(job: Job, place: Runtime) -> Curve:
    """The steps of the trainer, without what it writes."""
    forget_engine()
    rows = ROWS // place.data_degree
    exchange = place.exchange
    share = Share(
        place.data_rank,
        place.data_degree,
        ROWS,
        rows // job.accumulation,
        exchange.index,
        exchange.degree,
    )
    model = model_of(job.architecture, job.residual)
    engine = prepare_engine(
        model,
        build_optimizers(model, AdamWConfig(learning_rate=5e-3)),
        place,
        ParallelismConfig(
            job.strategy,
            sequence=exchange.degree,
            device="cpu",
            param_persistence_threshold=0,  # or nothing of a small model would be sharded
        ),
        PrecisionConfig(),
        gradient_clip=1.0,
        micro_batch=share.micro_batch,
    )
    batches, lanes = batches_of(job.architecture, share), Lanes(share, None, place.device)
    schedule, curve = ScheduleConfig(warmup_steps=5), Curve()
    for step in range(job.steps):
        fraction = learning_rate_fraction(step, schedule, job.steps)
        set_learning_rate(engine.param_groups, fraction)
        curve.losses.append(_step(engine, batches, lanes, step))
    batches.close()
    curve.weights = {name: value.clone() for name, value in engine.weights()}
    return curve


def _step(engine: Engine, batches: TrainingBatches, lanes: Lanes, step: int) -> float:
    place, share, model = engine.runtime, batches.share, engine.module
    assert isinstance(model, LanguageModel)
    micro_batches = batches.fetch(step * ROWS)
    predicted = float(sum(int(batch.num_predicted) for batch in micro_batches))
    (count,) = sum_over_ranks([predicted], place.device)
    model.train()
    total = 0.0
    for index, batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        model.recall(lanes[index])
        model.begin_micro_batch(step, share.lanes[index * share.micro_batch])
        total += float(
            engine.forward_backward(batch.tensors(), place.world_size / count, last=last)
        )
        lanes.keep(index, model.remembered())
    engine.step()
    lanes.move_on(remember=batches.order.goes_on((step + 1) * ROWS))
    (total,) = sum_over_ranks([total], place.device)
    return total / count


def on_mesh(mesh: str, jobs: Sequence[Job], folder: Path) -> list[Curve]:
    """Runs the jobs one after the other on new processes, divided as the mesh says."""
    data, sequence = map(int, mesh.split("x"))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    mp.start_processes(
        _process,
        (data * sequence, sequence, port, list(jobs), str(folder)),
        nprocs=data * sequence,
        start_method="forkserver",
    )
    curves: list[Curve] = torch.load(folder / "curves.pt", weights_only=False)
    return curves


def _process(rank: int, world: int, sequence: int, port: int, jobs: list[Job], folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with runtime(ParallelismConfig("ddp", sequence=sequence, device="cpu")) as place:
        curves = [train(job, place) for job in jobs]
        if place.is_main:
            torch.save(curves, Path(folder) / "curves.pt")


def reference(steps: int, architecture: str = "reformer") -> Curve:
    """One process, plain autograd."""
    with runtime(ParallelismConfig("single", device="cpu")) as place:
        return train(Job(steps=steps, architecture=architecture), place)


def compare(mesh: str, jobs: Sequence[Job], expected: dict[str, Curve]) -> list[dict[str, Any]]:
    """How far each job is from the reference of its architecture."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        curves = on_mesh(mesh, jobs, Path(folder))
    data, sequence = mesh.split("x")
    rows: list[dict[str, Any]] = []
    for job, curve in zip(jobs, curves, strict=True):
        loss, weights = curve.differences(expected[job.architecture])
        rows.append(
            {
                "architecture": job.architecture,
                "strategy": job.strategy,
                "data": data,
                "sequence": sequence,
                "memory": job.residual,
                "accumulation": job.accumulation,
                "loss": loss,
                "weights": weights,
            }
        )
    print(f"{mesh}: {len(jobs)} trainings in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--meshes", nargs="+", default=list(MESHES), help="data x sequence")
    parser.add_argument("--architectures", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = arguments.steps
    expected = {name: reference(steps, name) for name in arguments.architectures}
    jobs = [
        Job(strategy, residual, accumulation, steps, architecture)
        for architecture, strategy in product(arguments.architectures, arguments.strategies)
        for residual, accumulation in (("stored", 1), (LEANEST[architecture], 2))
    ]
    rows = [row for mesh in arguments.meshes for row in compare(mesh, jobs, expected)]
    worst = max(max(row["loss"], row["weights"]) for row in rows)
    text = TEXT.format(
        steps=steps,
        curves=", ".join(
            f"{name} {curve.losses[0]:.3f} -> {curve.losses[-1]:.3f}"
            for name, curve in expected.items()
        ),
        count=len(rows),
        worst=worst,
        bound=BOUND,
        table=table(shown(rows)),
    )
    print(text)
    if vars(arguments) == vars(parser.parse_args([])):
        print(save("strategies", "Every strategy beside one process", text, stamp("deepspeed")))
    return int(worst > BOUND)


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for the trainings that differ in memory and accumulation alone: the larger."""
    largest: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("architecture", "data", "sequence", "strategy"))
        kept = largest.setdefault(key, {"loss": 0.0, "weights": 0.0})
        kept |= {name: max(value, row[name]) for name, value in kept.items()}
    return [
        {"architecture": architecture, "data": data, "sequence": sequence, "strategy": strategy}
        | {name: f"{value:.1e}" for name, value in values.items()}
        for (architecture, data, sequence, strategy), values in sorted(largest.items())
    ]


TEXT = """A model of two layers of each architecture, {steps} steps of AdamW, fp32, on CPU with
gloo, against one process with plain autograd and no accumulation. The Reformer has local and LSH
attention and predicts the next token; the Longformer has a window for each layer and a global
token, and predicts masked ones; the Transformer-XL remembers 200 tokens, in contiguous order over
documents longer than rows, and has an adaptive softmax.

Losses: {curves}.

`data` processes, or groups, have rows of their own; `sequence` processes share the positions of
each row. Each row of the table is the larger difference of two trainings: with stored activations
and one micro-batch, and recomputed (the Reformer: reversible) in two micro-batches.

- `loss`: relative difference of a step's loss
- `weights`: difference of a last weight, by the largest of its tensor; not of the biases of keys,
  which change no softmax and have gradients of mere rounding

The largest of all {count} trainings is {worst:.1e}; {bound:.0e} is allowed.

{table}"""


if __name__ == "__main__":
    raise SystemExit(main())
