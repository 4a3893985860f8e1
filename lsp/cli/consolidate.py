"""`lsp consolidate`: the weights of a checkpoint in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsp.cli.verb import Verb

if TYPE_CHECKING:
    from lsp.run.config import ConsolidateConfig


def run(config: ConsolidateConfig) -> int:
    """Refuses a folder that is no run, then writes the file."""
    from lsp.run.validate import require_run

    require_run(config.run)  # before the import below, which takes seconds
    from lsp.run.consolidate import run_consolidate

    return run_consolidate(config)


VERB = Verb(
    name="consolidate",
    summary="put the weights of a checkpoint into one safetensors file",
    examples=(
        (
            "without a GPU, without a copy of the model in memory",
            "lsp consolidate run=checkpoints/first_run out=model.safetensors",
        ),
        (
            "the best checkpoint instead of the last",
            "lsp consolidate run=checkpoints/first_run checkpoint=best",
        ),
    ),
    keys={
        "run": "folder of a run",
        "checkpoint": "latest, best or a step",
        "out": "the file; <name of the run>.safetensors where not given",
        "overwrite": "replace an earlier file",
    },
    run=run,
    exit_codes={},
)
