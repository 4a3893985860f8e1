"""`lsp train`: pretrains a model from scratch, or goes on with a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsp.cli.verb import Verb
from lsp.core.exit_codes import DIVERGED, INTERRUPTED, LEAK, STALLED

if TYPE_CHECKING:
    from lsp.run.config import RunConfig


def run(config: RunConfig) -> int:
    """Trains; what cannot work is refused first."""
    from lsp.run.build import run_training

    return run_training(config)


VERB = Verb(
    name="train",
    summary="pretrain a model, or go on with a run of that name",
    examples=(
        ("a first run: real text, no network, no GPU", "lsp train experiment=first_run"),
        (
            "your own text, with a vocabulary learnt from it",
            "lsp train run_name=corpus data=text 'data.paths=[corpus/*.txt]' tokenizer=bpe",
        ),
        (
            "longer sequences, the same tokens in a step",
            "lsp train run_name=long sequence_length=8192 tokens_per_step=8192",
        ),
        (
            "predict masked tokens instead of the next one",
            "lsp train run_name=masked objective=masked packing=one_per_row",
        ),
        (
            "several processes, the optimizer sharded over them",
            "torchrun --nproc-per-node 2 -m lsp train run_name=two parallelism=zero2",
        ),
        (
            "a sweep: every combination, one run each",
            "lsp train -m optimizer=adamw,muon seed=0,1",
        ),
    ),
    keys={
        "run_name": "the run is <checkpoint.root>/<run_name>/",
        "seed": "of weights, data order, dropout and hashing",
        "sequence_length": "tokens in a row",
        "tokens_per_step": "tokens in an optimizer step, over all processes",
        "trainer.max_steps": "optimizer steps of the run",
        "phases": "parts with rows and windows of their own, see experiment=longformer_staged",
        "trainer.eval_every": "steps between evaluations, 0 for the end only",
        "trainer.log_every": "steps between logged rows",
        "trainer.micro_batch": "rows in one forward pass, 0 chooses",
        "trainer.order": "of rows: shuffled, contiguous for models that remember, auto",
        "trainer.dry_run": "see that memory suffices before the first step",
        "verify.at_start": "see that documents and the future stay apart before the first step",
        "watchdog.seconds": "without progress until a hang is told and ended; 0 for never",
        "optimizer.learning_rate": "peak of the schedule",
        "schedule.warmup_steps": "steps of the linear warmup",
        "data.paths": "files, globs or folders (text, jsonl, parquet)",
        "packing.align_documents": "documents begin on chunk boundaries",
        "parallelism.device": "auto, cpu or cuda",
        "checkpoint.root": "folder of runs",
        "checkpoint.every": "steps between checkpoints, 0 for the end only",
        "checkpoint.asynchronous": "training goes on while one is written",
        "checkpoint.keep_last": "how many of the newest are kept",
        "checkpoint.resume": "auto, never or must",
    },
    run=run,
    exit_codes={
        DIVERGED: "the loss stayed non-finite; starting again would only repeat it",
        LEAK: "tokens of the model reach where they must not (verify.at_start); nothing is trained",
        INTERRUPTED: "interrupted and saved; the same command goes on",
        STALLED: "a process hung or was lost; the same command goes on from the last checkpoint",
    },
)
