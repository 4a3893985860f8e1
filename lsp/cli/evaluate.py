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
    summary="measure bits per byte of a trained model",
    examples=(
        ("the newest checkpoint", "lsp evaluate run=checkpoints/first_run"),
        (
            "the best one, the result elsewhere",
            "lsp evaluate run=checkpoints/first_run checkpoint=best out=result.json",
        ),
    ),
    keys={
        "run": "folder of a run",
        "checkpoint": "latest, best or a step",
        "split": "validation or train",
        "rows": "rows evaluated, 0 for all",
        "out": "JSON file for the result; <run>/evaluation.json where not given",
    },
    run=run,
    exit_codes={},
)
