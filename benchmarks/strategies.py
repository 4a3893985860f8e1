"""Does the curve depend on how the work is divided? Every strategy beside one process.

python benchmarks/strategies.py                                  # every row; writes the result
python benchmarks/strategies.py --strategies zero3 --meshes 1x2  # a part; only prints

A small Reformer is trained on packed rows, on CPU with gloo, in fp32, under every combination of
strategy, mesh (processes that share rows x processes that share positions), memory and
accumulation. The reference is one process, plain autograd, no accumulation.
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

import numpy as np
import torch
import torch.multiprocessing as mp

from lsp.data.batches import BatchMaker, Share, TrainingBatches
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives import Vocabulary
from lsp.models.memory import MemoryConfig
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from lsp.parallel.collectives import sum_over_ranks
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.engine import Engine
from lsp.parallel.prepare import prepare_engine
from lsp.parallel.runtime import Runtime, _reset_accelerate, runtime
from lsp.training.config import AdamWConfig, ScheduleConfig
from lsp.training.optimizers import build_optimizers, set_learning_rate
from lsp.training.schedule import learning_rate_fraction

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero3_offload")
MESHES = ("2x1", "1x2", "2x2")
RESIDUALS = ("stored", "reversible")
ACCUMULATIONS = (1, 2)
BOUND = 1e-4

LENGTH, ROWS, VOCABULARY = 128, 8, 64
PRELOADED = ["lsp.parallel.zero", "lsp.parallel.plain", "lsp.models.reformer", "torch._dynamo"]


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes:
        strategy: Of parallelism.
        residual: What the layers keep.
        accumulation: Micro-batches of a step.
        steps: Optimizer steps.
    """

    strategy: str = "single"
    residual: str = "stored"
    accumulation: int = 1
    steps: int = 20


@dataclass
class Curve:
    """What a training left: its losses, its last weights."""

    losses: list[float] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def differences(self, other: Curve) -> tuple[float, float]:
        """Largest relative difference of a loss, and of a weight by the largest of its tensor."""
        assert self.weights.keys() == other.weights.keys()
        pairs = zip(self.losses, other.losses, strict=True)
        loss = max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)
        weight = max(
            float((self.weights[name] - value).abs().max() / value.abs().max())
            for name, value in other.weights.items()
        )
        return loss, weight


class Rows:
    """Packed rows: documents of counting tokens, each with a stride of its own, then padding."""

    def __len__(self) -> int:
        return 64

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(index)
        ids, segments = np.zeros(LENGTH, np.int64), np.zeros(LENGTH, np.int64)
        start, filled = 0, LENGTH - int(generator.integers(0, LENGTH // 4))
        for number in range(1, LENGTH):
            stop = min(filled, start + int(generator.integers(10, 60)))
            first, stride = generator.integers(0, 60), generator.integers(1, 4)
            ids[start:stop] = 4 + (first + stride * np.arange(stop - start)) % 60
            segments[start:stop] = number
            start = stop
            if start == filled:
                break
        return ids, segments


def model_of(job: Job) -> Reformer:
    """The same weights in every process."""
    torch.manual_seed(0)
    config = ReformerConfig(
        attn_layers=["local", "lsh"],
        hidden_size=64,
        feed_forward_size=128,
        num_attention_heads=4,
        attention_head_size=16,
        local_attn_chunk_length=16,
        lsh_attn_chunk_length=16,
        axial_pos_shape=[8, 16],
        axial_pos_embds_dim=[32, 32],
        max_position_embeddings=LENGTH,
        num_buckets=8,
        num_hashes=2,
        vocab_size=VOCABULARY,
        is_decoder=True,
        hidden_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
    )
    return Reformer(config, MemoryConfig(residual=job.residual))


def train(job: Job, place: Runtime) -> Curve:
    """The steps of the trainer, without what it writes."""
    _reset_accelerate()
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
    model = model_of(job)
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
    vocabulary = Vocabulary(size=VOCABULARY, mask_id=None, special_ids=frozenset({0}))
    batches = TrainingBatches(BatchMaker(Rows(), ObjectiveConfig(), vocabulary, 0), share)
    schedule, curve = ScheduleConfig(warmup_steps=5), Curve()
    for step in range(job.steps):
        fraction = learning_rate_fraction(step, schedule, job.steps)
        set_learning_rate(engine.param_groups, fraction)
        curve.losses.append(_step(engine, batches, step))
    batches.close()
    curve.weights = {name: value.clone() for name, value in engine.weights()}
    return curve


def _step(engine: Engine, batches: TrainingBatches, step: int) -> float:
    place, share = engine.runtime, batches.share
    micro_batches = batches.fetch(step * ROWS)
    predicted = float(sum(int(batch.num_predicted) for batch in micro_batches))
    (count,) = sum_over_ranks([predicted], place.device)
    engine.module.train()
    total = 0.0
    for index, batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        first_row = share.rank * share.rows_per_rank + index * share.micro_batch
        engine.module.begin_micro_batch(step, first_row)
        total += float(
            engine.forward_backward(batch.tensors(), place.world_size / count, last=last)
        )
    engine.step()
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


def reference(steps: int) -> Curve:
    """One process, plain autograd."""
    with runtime(ParallelismConfig("single", device="cpu")) as place:
        return train(Job(steps=steps), place)


def compare(mesh: str, jobs: Sequence[Job], expected: Curve) -> list[dict[str, Any]]:
    """Rows of the table."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        curves = on_mesh(mesh, jobs, Path(folder))
    data, sequence = mesh.split("x")
    rows: list[dict[str, Any]] = []
    for job, curve in zip(jobs, curves, strict=True):
        loss, weights = curve.differences(expected)
        rows.append(
            {
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
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--meshes", nargs="+", default=list(MESHES), help="data x sequence")
    arguments = parser.parse_args()
    from _common import save, stamp, table

    torch.set_num_threads(1)
    expected = reference(arguments.steps)
    jobs = [
        Job(strategy, residual, accumulation, arguments.steps)
        for strategy, residual, accumulation in product(
            arguments.strategies, RESIDUALS, ACCUMULATIONS
        )
    ]
    rows = [row for mesh in arguments.meshes for row in compare(mesh, jobs, expected)]
    worst = max(max(row["loss"], row["weights"]) for row in rows)
    shown = [row | {key: f"{row[key]:.1e}" for key in ("loss", "weights")} for row in rows]
    text = TEXT.format(
        steps=arguments.steps,
        first=expected.losses[0],
        last=expected.losses[-1],
        count=len(rows),
        worst=worst,
        bound=BOUND,
        table=table(shown),
    )
    print(text)
    if vars(arguments) == vars(parser.parse_args([])):
        print(save("strategies", "Every strategy beside one process", text, stamp("deepspeed")))
    return int(worst > BOUND)


TEXT = """A Reformer of two layers (local and LSH attention) on packed rows, {steps} steps of
AdamW, fp32, on CPU with gloo, against one process with plain autograd and no accumulation (loss
{first:.3f} -> {last:.3f}). `data` processes, or groups, have rows of their own; `sequence`
processes share the positions of each row.

- `loss`: largest relative difference of a step's loss
- `weights`: largest difference of a last weight, by the largest of its tensor

The largest of all {count} rows is {worst:.1e}; {bound:.0e} is allowed.

{table}"""


if __name__ == "__main__":
    raise SystemExit(main())
