"""`lsp export`: a folder that plain `transformers` loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsp.cli.verb import Verb

if TYPE_CHECKING:
    from lsp.run.config import ExportConfig


def run(config: ExportConfig) -> int:
    """Refuses a folder that is no run, then exports."""
    from lsp.run.validate import require_run

    require_run(config.run)  # before the import below, which takes seconds
    from lsp.run.export import run_export

    return run_export(config)


VERB = Verb(
    name="export",
    summary="write a folder that plain transformers loads, and prove it",
    examples=(
        (
            "config.json, model.safetensors, tokenizer, model card",
            "lsp export run=checkpoints/first_run out=exported/first_run",
        ),
        (
            "a causal or reversible Longformer, a Transformer-XL, Mega or NEZHA, with its code",
            "lsp export run=checkpoints/memory out=exported/memory",
        ),
        (
            "the best checkpoint, in half the space",
            "lsp export run=checkpoints/first_run checkpoint=best dtype=bf16",
        ),
    ),
    keys={
        "run": "folder of a run",
        "checkpoint": "latest, best or a step",
        "out": "folder of the export; exported/<name of the run> where not given",
        "max_shard_size": "largest file of weights",
        "dtype": "fp32, bf16 or fp16",
        "overwrite": "replace an earlier export",
        "verify_length": "tokens of the long comparison, 0 for the length of the training",
    },
    run=run,
    exit_codes={},
)
