"""`lsp generate`: text from a trained model, as it is written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lsp.core.errors import UserError, require
from lsp.core.exit_codes import DONE
from lsp.models.sampling import generate_ids
from lsp.parallel.runtime import choose_device
from lsp.run.config import GenerateConfig
from lsp.run.load import LoadedRun, load_run

LONGEST_WAIT = 16
"""Tokens after which it is plain that they do not spell a character."""


def run_generate(config: GenerateConfig) -> int:
    """Prints continuations of a prompt; returns the exit code.

    On a terminal the text appears token by token, elsewhere a continuation at a time.

    Raises:
        UserError: The run, the prompt or the sampling cannot be used.
    """
    prompt = _prompt(config)
    loaded = load_run(config.run, config.checkpoint)
    tokenizer = load_tokenizer(loaded)
    model = loaded.model.to(choose_device(loaded.config.parallelism))
    # What answers a prompt is a text of its own, behind a token that begins it.
    answers = getattr(model.config, "answers", False)
    ends = answers and loaded.config.packing.append_eos
    prompt_ids = encode_prompt(tokenizer, prompt, ends=ends)
    samples = [
        generate_ids(
            model,
            prompt_ids,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            greedy=config.greedy,
            seed=config.seed,
            sample=sample,
            eos_id=tokenizer.eos_token_id,
            cache=config.cache,
        )
        for sample in range(config.num_samples)
    ]
    before, printed = ([], "") if answers else (prompt_ids, prompt)
    room = model.config.max_positions - (len(before) or 1)
    if config.max_new_tokens > room:
        _note(f"max_new_tokens={config.max_new_tokens}: the model has positions for {room} more")

    def decode(ids: list[int]) -> str:
        # Those of an answer, such as sentinels, say what belongs where.
        text: str = tokenizer.decode(ids, skip_special_tokens=not answers)
        return text

    for number, new_ids in enumerate(samples, start=1):
        if config.num_samples > 1:
            print(f"--- {number} of {config.num_samples} ---")
        if sys.stdout.isatty():
            print(printed, end="", flush=True)
            for piece in text_pieces(before, new_ids, decode):
                print(piece, end="", flush=True)
            print()
        else:
            print(printed + "".join(text_pieces(before, new_ids, decode)), flush=True)
    return DONE


def load_tokenizer(loaded: LoadedRun) -> Any:
    """The tokenizer of a run.

    Raises:
        UserError: The run has none.
    """
    from transformers import AutoTokenizer

    path = loaded.tokenizer_path
    require(
        path.is_dir(),
        f"run={loaded.run_dir} has no tokenizer: put the files of one into {path}",
    )
    return AutoTokenizer.from_pretrained(path)


def encode_prompt(tokenizer: Any, prompt: str, *, ends: bool = False) -> list[int]:
    """Tokens of a prompt; for an empty one, the token that stands between texts.

    Args:
        tokenizer: Of the run.
        prompt: The text.
        ends: Whether it is a whole text, as an encoder reads it, with the token that ends one.

    Raises:
        UserError: The prompt is empty, and the tokenizer has no such token.
    """
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not ids:
        start = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        require(start is not None, "prompt is empty, and the tokenizer has no token to begin with")
        return [start]
    unknown = ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
    if unknown:
        _note(f"{unknown} of the {len(ids)} tokens of the prompt are not in the vocabulary")
    return [*ids, tokenizer.eos_token_id] if ends else ids


def text_pieces(
    prompt_ids: list[int], new_ids: Iterable[int], decode: Callable[[list[int]], str]
) -> Iterator[str]:
    """The text of a continuation, as the tokens come.

    A character may take several tokens, and until the last it reads as U+FFFD: nothing is given
    out before it is whole. What is decoded anew with every token is bounded: only what came since
    the last piece, and that piece, whose end may decide how the next one begins.

    Args:
        prompt_ids: Tokens of the prompt.
        new_ids: Tokens of the continuation.
        decode: Turns tokens into text.
    """
    before, pending = list(prompt_ids), []
    for token in new_ids:
        pending.append(token)
        text = decode([*before, *pending])
        if not text.endswith("\ufffd"):
            yield text[len(decode(before)) :]
            before, pending = pending, []
        elif len(pending) > LONGEST_WAIT:
            # No character ends in here, and one has four bytes at most: the rest is no text.
            lost, pending = pending[:-3], pending[-3:]
            yield decode([*before, *lost])[len(decode(before)) :]
            before = lost
    if pending:
        yield decode([*before, *pending])[len(decode(before)) :]


def _prompt(config: GenerateConfig) -> str:
    if config.prompt_file is None:
        return config.prompt
    try:
        return Path(config.prompt_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"prompt_file={config.prompt_file} cannot be read: {reason}") from error


def _note(message: str) -> None:
    print(f"lsp: {message}", file=sys.stderr)
