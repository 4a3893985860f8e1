"""`lsp verify`: shows of a model what a long run rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lsp.cli.verb import Verb
from lsp.core.exit_codes import LEAK

if TYPE_CHECKING:
    from lsp.run.config import RunConfig


def run(config: RunConfig) -> int:
    """Certifies the model of a run, or all architectures in tiny sizes."""
    from lsp.run.verify import run_verify

    return run_verify(config)


def with_certificate(overrides: Sequence[str]) -> list[str]:
    """The first word says what is certified; without keys of a run, everything is."""
    words = list(overrides)
    if words and "=" not in words[0]:
        words[0] = f"verify.certificate={words[0]}"
    own = ("verify.", "hydra.", "parallelism.device=", "~hydra", "+hydra")
    if all(word.startswith(own) for word in words):
        words.insert(0, "verify.everything=true")
    return words


VERB = Verb(
    name="verify",
    summary="show that documents of a row, and the future, do not reach what they must not",
    examples=(
        ("every architecture, attention and memory form, in tiny sizes", "lsp verify packing"),
        (
            "the model that a command trains, without its data",
            "lsp verify packing architecture=longformer sequence_length=4096 precision=bf16",
        ),
        (
            "with the positions of a row shared by two processes, started here",
            "lsp verify packing experiment=first_run parallelism.sequence=2",
        ),
    ),
    keys={
        "verify.certificate": "what is certified, the word after lsp verify: packing",
        "verify.everything": "all architectures instead; so where no key of a run is given",
        "verify.length": "tokens in the rows that are looked at, 0 for a few hundred or fewer",
        "verify.out": "JSON file for the result; verified/<certificate>.json where not given",
        "sequence_length": "tokens in a row of the training",
        "memory.residual": "what is kept per layer: auto, reversible, recomputed or stored",
        "parallelism.sequence": "processes that share the positions of a row",
        "parallelism.device": "auto, cpu or cuda",
    },
    run=run,
    exit_codes={LEAK: "a leak, or nothing is seen where something must be; it says what"},
    rewrite=with_certificate,
)
