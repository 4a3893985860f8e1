"""`lsp generate`: text from a trained model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lsp.cli.verb import Verb

if TYPE_CHECKING:
    from lsp.run.config import GenerateConfig


def run(config: GenerateConfig) -> int:
    """Refuses a folder that is no run, then generates."""
    from lsp.run.validate import require_run

    require_run(config.run)  # before the import below, which takes seconds
    from lsp.run.generate import run_generate

    return run_generate(config)


def literal_prompt(overrides: Sequence[str]) -> list[str]:
    r"""Quotes the prompt, so that any text can be typed: `prompt="def f(x, y):"`.

    Left alone where it is quoted for Hydra already, and where it is an interpolation (`${…}`).
    """
    return [
        f"prompt={_quoted(word[len('prompt=') :])}" if word.startswith("prompt=") else word
        for word in overrides
    ]


def _quoted(text: str) -> str:
    if text.startswith("${") or re.fullmatch(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', text, re.S):
        return text
    # Backslashes are doubled only where they stand before what they would escape.
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    text = re.sub(r'(\\*)"', lambda match: match[1] * 2 + r"\"", text)
    text = re.sub(r"(\\+)$", lambda match: match[1] * 2, text)
    return f'"{text}"'


VERB = Verb(
    name="generate",
    summary="continue a text with a trained model",
    examples=(
        ("continue a prompt", 'lsp generate run=checkpoints/first_run prompt="def "'),
        (
            "the text of a file, three ways",
            "lsp generate run=checkpoints/first_run prompt_file=start.txt num_samples=3",
        ),
        (
            "less chance",
            "lsp generate run=checkpoints/first_run prompt=import temperature=0.7 top_p=0.9",
        ),
    ),
    keys={
        "run": "folder of a run",
        "checkpoint": "latest, best or a step",
        "prompt": "text to continue",
        "prompt_file": "file whose text is continued, instead",
        "max_new_tokens": "length of the continuation",
        "temperature": "below 1 is safer, above 1 is wilder",
        "top_k": "sample among so many of the likeliest tokens, 0 for all",
        "top_p": "sample among the likeliest tokens that reach this probability",
        "greedy": "take the likeliest token instead of sampling",
        "seed": "of the sampling",
        "num_samples": "continuations of the same prompt",
        "cache": "remember what was read; false reads it again for every token, to compare",
    },
    run=run,
    exit_codes={},
    rewrite=literal_prompt,
)
