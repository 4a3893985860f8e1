"""`lsp import`: a published checkpoint becomes a run that continues training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsp.cli.verb import Verb

if TYPE_CHECKING:
    from lsp.run.config import ImportConfig


def run(config: ImportConfig) -> int:
    """Imports."""
    from lsp.run.importing import run_import

    return run_import(config)


VERB = Verb(
    name="import",
    summary="make a run from a published checkpoint",
    examples=(
        (
            "a checkpoint of the Hub",
            "lsp import from=google/reformer-enwik8 out=checkpoints/enwik8",
        ),
        ("a folder, for example an export", "lsp import from=exported/first_run"),
        (
            "a published Transformer-XL",
            "lsp import from=transfo-xl/transfo-xl-wt103 out=checkpoints/wt103",
        ),
        (
            "any other published architecture, as lsp architectures lists them",
            "lsp import from=openai-community/gpt2 out=checkpoints/gpt2",
        ),
        (
            "a RoBERTa, made into a Longformer for longer rows",
            "lsp import from=FacebookAI/roberta-base architecture=longformer sequence_length=4096 "
            "out=checkpoints/long",
        ),
    ),
    keys={
        "from": "folder or Hub name",
        "out": "folder of the run; checkpoints/<last part of from> where not given",
        "architecture": "its name, or hub; null for what the checkpoint's model_type says",
        "sequence_length": "positions of the Longformer that a RoBERTa is made into",
        "attention_window": "of that Longformer, in all layers or [one,for,each]; 512 if null",
        "objective": "what it goes on with (of transformers); null for what its head was made for",
    },
    run=run,
    exit_codes={},
)
