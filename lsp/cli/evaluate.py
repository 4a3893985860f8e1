"""`lsp evaluate`: how well a trained model predicts held-out text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsp.cli.verb import Verb

if TYPE_CHECKING:
    from lsp.run.config import EvaluateConfig


def run(config: EvaluateConfig) -> int:
    """Refuses a folder that is no run, then evaluates."""
    from lsp.run.validate import require_run

    require_run(config.run)  # before the import below, which takes seconds
    from lsp.run.evaluate import run_evaluate

    return run_evaluate(config)


VERB = Verb(
    name="evaluate",
    summary="measure bits per byte of a trained model, and its use of long context",
    examples=(
        ("the newest checkpoint", "lsp evaluate run=checkpoints/first_run"),
        (
            "the best one, the result elsewhere",
            "lsp evaluate run=checkpoints/first_run checkpoint=best out=result.json",
        ),
        (
            "does it find again what stood far back?",
            "lsp evaluate run=checkpoints/first_run passkey=true",
        ),
    ),
    keys={
        "run": "folder of a run",
        "checkpoint": "latest, best or a step",
        "split": "validation or train",
        "rows": "rows evaluated, 0 for all",
        "out": "JSON file for the result; <run>/evaluation.json where not given",
        "plots": "draw each report into a PNG beside the result",
        "report_rows": "rows that context and sliding read, 0 for all",
        "context": "loss by context length: the same tokens from less of what is before them",
        "context_shortest": "the smallest context length",
        "context_longest": "the largest, 0 for sequence_length or what a memory reaches",
        "passkey": "ask for numbers that stand far back in a text, by length and depth",
        "passkey_lengths": "lengths of those texts, [] for sequence_length and its halves",
        "passkey_depths": "places of the number in the text",
        "passkey_samples": "texts for each length and place",
        "passkey_distractors": "numbers that the right one has to be likelier than",
        "seed": "of those numbers",
        "sliding": "predict every token with much before it, by stride or length of the memory",
        "sliding_strides": "tokens that each window adds, without memory",
        "sliding_memories": "lengths of the memory, with one",
        "sliding_segment": "tokens read at a time with a memory, 0 for sequence_length",
        "same_length": "of a Transformer-XL while it slides",
        "clamp_len": "of a Transformer-XL while it slides",
    },
    run=run,
    exit_codes={},
)
