"""A trainer over rows in memory, without configuration files or prepared data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lsp.checkpointing.config import CheckpointConfig
from lsp.checkpointing.snapshot import TrainState
from lsp.checkpointing.store import CheckpointStore
from lsp.data.batches import BatchMaker, EvaluationBatches, Share, TrainingBatches
from lsp.data.config import ObjectiveConfig
from lsp.models.interface import LanguageModel
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.prepare import prepare_engine
from lsp.parallel.runtime import runtime
from lsp.tracking.tracker import JsonlTracker, read_rows
from lsp.training.config import AdamWConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from lsp.training.console import TrainingConsole
from lsp.training.optimizers import build_optimizers
from lsp.training.signals import StopRequest
from lsp.training.trainer import Trainer
from tests.data.rows import VOCABULARY, ListRows, StreamRows
from tests.training.tiny import LENGTH, reformer

ROWS_PER_STEP = 4

STREAM = [150, 700, 30, 900, 64, 236]
"""Tokens of the documents of a stream: 33 rows, eight for each lane of a step."""


@contextmanager
def trainer(
    folder: Path,
    model: LanguageModel | None = None,
    *,
    micro_batch: int = ROWS_PER_STEP,
    optimizer: OptimizerConfig | None = None,
    precision: str = "fp32",
    state: TrainState | None = None,
    contiguous: bool = False,
    memory: dict[str, torch.Tensor] | None = None,
    **settings: Any,
) -> Iterator[Trainer]:
    """A trainer whose model starts from the same weights each time."""
    torch.manual_seed(0)
    model = model or reformer(vocab_size=VOCABULARY.size)
    state = state or TrainState()
    values = {"max_steps": 6, "log_every": 1, "eval_every": 3, "drift_every": 0, "dry_run": False}
    values |= settings
    config = TrainerConfig(**values)
    with runtime(ParallelismConfig(device="cpu")) as place:
        share = Share(0, 1, ROWS_PER_STEP, micro_batch)
        data = StreamRows(STREAM, LENGTH) if contiguous else ListRows(30, LENGTH)
        maker = BatchMaker(data, ObjectiveConfig(), VOCABULARY, seed=1, contiguous=contiguous)
        engine = prepare_engine(
            model,
            build_optimizers(model, optimizer or AdamWConfig(learning_rate=1e-2)),
            place,
            ParallelismConfig(device="cpu"),
            PrecisionConfig(name=precision),
            gradient_clip=config.gradient_clip,
            micro_batch=micro_batch,
        )
        made = Trainer(
            engine=engine,
            batches=TrainingBatches(maker, share),
            validation=EvaluationBatches(maker, share, 5),
            bytes_per_token=(1.0, 1.0),
            settings=config,
            schedule=ScheduleConfig(warmup_steps=0),
            checkpoints=CheckpointStore(folder),
            checkpoint_config=CheckpointConfig(every=2),
            config_yaml="",
            state=state,
            seed=0,
            trackers=[JsonlTracker(folder / "metrics.jsonl", state.step)],
            console=TrainingConsole(config.max_steps, state.step, enabled=True),
            stop=StopRequest(),
            memory=memory,
        )
        try:
            yield made
        finally:
            made.batches.close()


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    """What was logged, by step."""
    return {row["step"]: row for row in read_rows(folder / "metrics.jsonl")}


def poison(model: LanguageModel, passes: set[int], value: float = float("nan")) -> None:
    """Multiplies the loss of some training forward passes (1, 2, …) by a value."""
    original, done = model.forward, iter(range(1, 10**6))

    def forward(*args: Any, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum, count = original(*args, **arguments)
        if model.training and next(done) in passes:
            loss_sum = loss_sum * value
        return loss_sum, count

    model.forward = forward  # type: ignore[method-assign]
