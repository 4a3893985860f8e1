"""`lsp evaluate`: how well a trained model predicts a split, and how that depends on context."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from lsp.checkpointing.files import write_json
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE
from lsp.data.batches import EvaluationBatches, Share
from lsp.evaluation.plots import plot_reports
from lsp.evaluation.position import PositionMeter
from lsp.evaluation.tables import print_report, print_summary
from lsp.run.config import EvaluateConfig
from lsp.run.load import LoadedRun, load_run
from lsp.run.parts import batch_maker, bytes_per_token, vocabulary_of
from lsp.run.reports import REPORTS
from lsp.run.subject import Subject, note, open_subject, progress_of
from lsp.training.evaluation import evaluate


def run_evaluate(config: EvaluateConfig) -> int:
    """Evaluates a checkpoint on a split of its run's data; returns the exit code.

    What is found is printed as it comes, and written also when the rest is interrupted.

    Raises:
        UserError: The run or its data cannot be used, or the result not be written.
    """
    loaded = load_run(config.run, config.checkpoint)
    subject = open_subject(loaded, config.split)
    out = Path(config.out) if config.out else loaded.run_dir / "evaluation.json"
    console = Console(file=sys.stdout, highlight=False)
    result = summarise(subject, config.rows)
    print_summary(console, result)
    print_report(console, "by_position", result["by_position"])
    for name, report in REPORTS.items():
        found = result[name] = []
        try:
            for row in report(subject, config):
                found.append(row)
        finally:
            _write(out, result)
        print_report(console, name, found)
    pictures = plot_reports(result, out) if config.plots else []
    print(f"written to {', '.join(map(str, [out, *pictures]))}")
    return DONE


def measure(loaded: LoadedRun, split: str, max_rows: int = 0) -> dict[str, Any]:
    """Evaluates a loaded run without further reports; the result is plain and ready for JSON.

    Args:
        loaded: The run.
        split: `validation` or `train`.
        max_rows: Rows evaluated; 0 for all.

    Raises:
        UserError: The split is empty.
    """
    return summarise(open_subject(loaded, split), max_rows)


def summarise(subject: Subject, max_rows: int = 0) -> dict[str, Any]:
    """The loss of the split, and by position in the document."""
    run, loaded, split = subject.run, subject.loaded, subject.split
    maker = batch_maker(run, subject.prepared, split, vocabulary_of(subject.prepared))
    micro_batch = max(1, run.trainer.micro_batch_tokens // run.sequence_length)
    batches = EvaluationBatches(maker, Share(0, 1, micro_batch, micro_batch), max_rows)
    unknown_id = subject.prepared.manifest["tokenizer"]["special_ids"].get("unk")
    meter, units = PositionMeter(subject.model, unknown_id), subject.units
    with progress_of(f"evaluating {split}", len(batches)) as advance:
        found = evaluate(
            meter,
            subject.model,
            batches,
            subject.device,
            bytes_per_token(subject.prepared, split),
            on_batch=lambda *_: advance(1),
        )
    correct = sum(bucket.sums.correct for bucket in meter.buckets)
    if meter.unknown and subject.causal:
        note(
            f"{meter.unknown / found.count:.1%} of the tokens stand for words that are not in the "
            "vocabulary and spell no text: figures per byte, character and word are too low to "
            "compare with those of other vocabularies"
        )
    return {
        "run": loaded.run_dir.as_posix(),
        "step": loaded.step,
        "split": split,
        "objective": run.objective.name,
        "rows": batches.num_rows,
        "tokens": found.count,
        "loss": found.loss,
        "bits_per_byte": found.bits_per_byte if subject.causal else None,
        "bits_per_character": units.bits_per_character(found.loss),
        "perplexity": found.perplexity,
        "word_perplexity": units.word_perplexity(found.loss),
        "accuracy": correct / found.count if found.count else None,
        "unknown": meter.unknown / found.count if found.count else None,
        "bytes_per_token": found.bytes_per_token,
        "by_position": meter.rows(units),
    }


def _write(out: Path, result: dict[str, Any]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror or error}") from error
