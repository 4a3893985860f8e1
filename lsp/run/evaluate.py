"""`lsp evaluate`: how well a trained model predicts a split, and how that depends on context."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipelines.manifest import content_digest
from lsp.checkpointing.files import write_json
from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE
from lsp.data.batches import BatchMaker, EvaluationBatches, Share
from lsp.parallel.runtime import choose_device
from lsp.run.build import bytes_per_token, prepare_data, vocabulary_of
from lsp.run.config import EvaluateConfig
from lsp.run.load import LoadedRun, load_run
from lsp.training.evaluation import Evaluation, evaluate

FIRST_BUCKET = 64
"""Positions of the first bucket; every further one is as large as all before it."""
SCORES_AT_ONCE = 2**26


@dataclass
class Bucket:
    """What was predicted at positions `start` to `stop` of a document."""

    start: int
    stop: int
    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0


@dataclass
class Meter:
    """Loss of a batch, as a model has it, while adding up what the sum alone does not tell.

    Attributes:
        model: In evaluation mode; its head can be applied to a part of the hidden states.
        buckets: Results by position in the document.
    """

    model: Any
    buckets: list[Bucket] = field(default_factory=list)

    def __call__(self, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sum and count of a batch, as `lsp.training.evaluation.evaluate` asks for them."""
        labels_BL, positions_BL = tensors["labels"], tensors["position_ids"]
        hidden_BLX = self.model.hidden_states(
            tensors["input_ids"], tensors["segment_ids"], positions_BL
        )
        # Only what is predicted needs scores, and few at a time: (L, V) may not fit.
        predicted_BL = labels_BL != IGNORE_INDEX
        hidden_TX, labels_T = hidden_BLX[predicted_BL], labels_BL[predicted_BL]
        size = max(1, SCORES_AT_ONCE // int(self.model.config.vocab_size))
        losses, hits = [], []
        for start in range(0, len(labels_T), size):
            labels_K = labels_T[start : start + size]
            logits_KV = self.model.lm_head(hidden_TX[None, start : start + size])[0].float()
            losses.append(F.cross_entropy(logits_KV, labels_K, reduction="none"))
            hits.append(logits_KV.argmax(-1) == labels_K)
        if not losses:
            return hidden_BLX.new_zeros(()), predicted_BL.sum()
        losses_T, hits_T = torch.cat(losses).double(), torch.cat(hits)
        self._add(positions_BL[predicted_BL], losses_T, hits_T)
        return losses_T.sum(), predicted_BL.sum()

    def _add(self, positions_T: torch.Tensor, losses_T: torch.Tensor, hits_T: torch.Tensor) -> None:
        last = int(positions_T.max())
        while not self.buckets or self.buckets[-1].stop <= last:
            start = self.buckets[-1].stop if self.buckets else 0
            self.buckets.append(Bucket(start, max(FIRST_BUCKET, 2 * start)))
        for bucket in self.buckets:
            inside_T = (positions_T >= bucket.start) & (positions_T < bucket.stop)
            bucket.loss_sum += float(losses_T[inside_T].sum())
            bucket.correct += int(hits_T[inside_T].sum())
            bucket.count += int(inside_T.sum())


def run_evaluate(config: EvaluateConfig) -> int:
    """Evaluates a checkpoint on a split of its run's data; returns the exit code.

    Raises:
        UserError: The run or its data cannot be used, or the result not be written.
    """
    loaded = load_run(config.run, config.checkpoint)
    result = measure(loaded, config.split, config.rows)
    out = Path(config.out) if config.out else loaded.run_dir / "evaluation.json"
    _print(result)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror or error}") from error
    print(f"written to {out}")
    return DONE


def measure(loaded: LoadedRun, split: str, max_rows: int = 0) -> dict[str, Any]:
    """Evaluates a loaded run; the result is plain and ready for JSON.

    Args:
        loaded: The run.
        split: `validation` or `train`.
        max_rows: Rows evaluated; 0 for all.

    Raises:
        UserError: The split is empty.
    """
    run = loaded.config
    prepared = prepare_data(run)
    trained_on = loaded.state.get("data_digest")
    if trained_on and trained_on != content_digest(prepared.manifest):
        print("lsp: the data is not what the run was trained on: it has changed", file=sys.stderr)
    rows = prepared.split(split)
    if len(rows) == 0:
        raise UserError(
            f"split={split} has no rows: evaluate the other one, or train with more data or "
            "another data.validation_fraction"
        )
    maker = BatchMaker(rows, run.objective, vocabulary_of(prepared), run.seed)
    micro_batch = max(1, run.trainer.micro_batch_tokens // run.sequence_length)
    batches = EvaluationBatches(maker, Share(0, 1, micro_batch, micro_batch), max_rows)
    device = choose_device(run.parallelism)
    meter = Meter(loaded.model.to(device))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"evaluating {split}", total=len(batches))
        found = evaluate(
            meter,
            loaded.model,
            batches,
            device,
            bytes_per_token(prepared, split),
            on_batch=lambda done, _: progress.update(task, completed=done),
        )
    return _result(loaded, split, batches.num_rows, found, meter.buckets)


def _result(
    loaded: LoadedRun, split: str, rows: int, found: Evaluation, buckets: list[Bucket]
) -> dict[str, Any]:
    causal = loaded.config.objective.name == "causal"
    per_token = math.log(2) * found.bytes_per_token
    correct = sum(bucket.correct for bucket in buckets)
    by_position = [
        {
            "from": bucket.start,
            "to": bucket.stop - 1,
            "tokens": bucket.count,
            "loss": bucket.loss_sum / bucket.count,
            "bits_per_byte": bucket.loss_sum / bucket.count / per_token if causal else None,
            "accuracy": bucket.correct / bucket.count,
        }
        for bucket in buckets
        if bucket.count
    ]
    return {
        "run": loaded.run_dir.as_posix(),
        "step": loaded.step,
        "split": split,
        "objective": loaded.config.objective.name,
        "rows": rows,
        "tokens": found.count,
        "loss": found.loss,
        # Masked tokens are a part of the text: their loss spells no bytes.
        "bits_per_byte": found.bits_per_byte if causal else None,
        "perplexity": found.perplexity,
        "accuracy": correct / found.count if found.count else None,
        "bytes_per_token": found.bytes_per_token,
        "by_position": by_position,
    }


def _print(result: dict[str, Any]) -> None:
    console = Console(file=sys.stdout, highlight=False)
    title = f"{result['run']}, step {result['step']:,}, {result['split']}"
    table = Table("", "", title=title, show_header=False)
    table.columns[1].justify = "right"
    for key in ("rows", "tokens", "loss", "bits_per_byte", "perplexity", "accuracy"):
        if result[key] is not None:
            table.add_row(_words(key), _number(result[key]))
    console.print(table)
    by_position = result["by_position"]
    if not by_position:
        return
    table = Table("position", title="by position in the document")
    keys = [
        key
        for key in ("tokens", "loss", "bits_per_byte", "accuracy")
        if by_position[0][key] is not None
    ]
    for key in keys:
        table.add_column(_words(key), justify="right")
    for row in by_position:
        table.add_row(f"{row['from']:,}-{row['to']:,}", *(_number(row[key]) for key in keys))
    console.print(table)


def _words(key: str) -> str:
    return {"loss": "loss (nats per token)"}.get(key, key.replace("_", " "))


def _number(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
