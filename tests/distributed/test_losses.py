"""Losses with heads, generators and experts of their own, under sharding."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from lsp.core.batch import IGNORE_INDEX
from lsp.models.hub import keys
from lsp.models.hub.build import begin, build
from lsp.models.hub.config import HubConfig, resolve
from lsp.models.hub.example import example
from lsp.models.memory import MemoryConfig
from lsp.parallel.collectives import sum_over_ranks
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.prepare import prepare_engine
from lsp.parallel.runtime import Runtime, forget_engine, runtime
from lsp.training.config import AdamWConfig
from lsp.training.optimizers import build_optimizers
from tests.distributed.spawn import run_distributed
from tests.models.hub.tiny import SPECIAL_IDS, VOCABULARY, tiny

LENGTH, ROWS, STEPS = 16, 4, 3


@dataclass(frozen=True)
class Job:
    """One small training."""

    model_type: str
    objective: str
    strategy: str = "single"
    accumulation: int = 1


@dataclass
class Outcome:
    """What it gave, the same on every process."""

    losses: list[float] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


JOBS = [
    Job("electra", "replaced_token"),
    Job("switch_transformers", "span_corruption"),
    Job("xlnet", "permutation"),
    Job("squeezebert", "sentence_order"),
    Job("prophetnet", "future_ngram"),
    Job("mobilebert", "next_sentence"),
]


def train(jobs: list[Job]) -> list[Outcome]:
    """Trains one after the other, in the same group of processes."""
    with runtime(ParallelismConfig(strategy=jobs[0].strategy, device="cpu")) as place:
        outcomes = []
        for job in jobs:
            forget_engine()
            outcomes.append(_train(job, place))
        return outcomes


def _train(job: Job, place: Runtime) -> Outcome:
    size = ROWS // place.world_size // job.accumulation
    torch.manual_seed(0)
    known = keys.known_keys(job.model_type)
    still = {key: 0.0 for key in known if "drop" in key or key == "router_jitter_noise"}
    config = resolve(
        HubConfig(model_type=job.model_type, model_init_config=tiny(job.model_type) | still),
        vocab_size=VOCABULARY,
        sequence_length=LENGTH,
        objective=job.objective,
        special_ids=SPECIAL_IDS,
    )
    model = build(config, MemoryConfig(residual="recomputed", head_tiles=3))
    begin(model, fresh=True)
    engine = prepare_engine(
        model,
        build_optimizers(model, AdamWConfig(learning_rate=1e-3)),
        place,
        ParallelismConfig(strategy=job.strategy, device="cpu", param_persistence_threshold=0),
        PrecisionConfig(name="fp32"),
        gradient_clip=1.0,
        micro_batch=size,
    )
    outcome = Outcome()
    for step in range(STEPS):
        batch = _batch(job.objective, step)
        count = int((batch["labels"] != IGNORE_INDEX).sum())
        engine.module.train()
        total = 0.0
        for number in range(job.accumulation):
            first = (place.rank * job.accumulation + number) * size
            engine.module.begin_micro_batch(step, first)
            part = {name: x[first : first + size] for name, x in batch.items()}
            last = number == job.accumulation - 1
            total += float(engine.forward_backward(part, place.world_size / count, last=last))
        (total,) = sum_over_ranks([total], place.device)
        outcome.losses.append(total / count)
        assert engine.step().applied
    outcome.weights = {name: value.clone() for name, value in engine.weights()}
    return outcome


def _batch(objective: str, step: int) -> dict[str, torch.Tensor]:
    """Rows that predict 16, 12, 8 and 4 tokens, or half as many."""
    batch = example(objective, LENGTH, VOCABULARY, rows=ROWS, first_id=8)
    batch["input_ids"] = 8 + (batch["input_ids"] - 8 + 5 * step) % (VOCABULARY - 8)
    left_B1 = torch.tensor([16, 12, 8, 4])[:, None]
    gone_BL = torch.arange(LENGTH) >= left_B1
    batch["labels"] = batch["labels"].masked_fill(gone_BL, IGNORE_INDEX)
    if "permutation" in batch:
        batch["permutation"] = batch["permutation"].masked_fill(gone_BL, -1)
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero3", "ddp"])
def test_equals_one_process(tmp_path, strategy):
    expected = train(JOBS)
    shared = [
        replace(job, strategy=strategy, accumulation=1 + number % 2)
        for number, job in enumerate(JOBS)
    ]
    for process in run_distributed(train, 2, tmp_path, shared):
        for job, found, single in zip(shared, process, expected, strict=True):
            assert found.losses == pytest.approx(single.losses, rel=1e-5), job
            assert found.weights.keys() == single.weights.keys()
            for name, value in single.weights.items():
                torch.testing.assert_close(
                    found.weights[name],
                    value,
                    rtol=0,
                    atol=1e-4,
                    msg=lambda text, job=job, name=name: f"{job} {name}: {text}",
                )
