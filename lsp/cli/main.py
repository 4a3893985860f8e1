"""The `lsp` command: a table of verbs.

Only the standard library and the small verb files are imported here, so that `lsp` alone answers
at once; a verb imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from lsp import __version__
from lsp.cli import (
    architectures,
    consolidate,
    evaluate,
    export,
    generate,
    importing,
    prepare,
    train,
    verify,
)
from lsp.core import exit_file
from lsp.core.errors import LeakError, UserError
from lsp.core.exit_codes import BUG, LEAK, USER_ERROR
from lsp.core.ranks import rank

VERBS = {
    module.VERB.name: module.VERB
    for module in (
        prepare,
        train,
        evaluate,
        generate,
        export,
        consolidate,
        importing,
        verify,
        architectures,
    )
}

# Conditions of the machine that the user can mend, whatever was being written.
MENDABLE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM))

INTERRUPTED_BY_KEYBOARD = 128 + 2
BROKEN_PIPE = 128 + 13


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `lsp` with the words after it.

    Returns:
        The exit code (`lsp.core.exit_codes`). What is a bug of ours is raised.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    settled = exit_file.settled()
    if settled is not None:
        return settled
    code = BUG  # which is what every other exception means
    try:
        exit_file.attach()
        code = _answer(words)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else BUG
        raise
    finally:
        exit_file.record(code)
    return code


def _answer(words: list[str]) -> int:
    """Runs a verb; tells the user what went wrong, unless it is a bug of ours."""
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        print("lsp: interrupted", file=sys.stderr)
        return INTERRUPTED_BY_KEYBOARD
    except BrokenPipeError:
        # The reader left, as `head` does; without this the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except LeakError as leak:
        print(f"lsp: {leak}", file=sys.stderr)
        return LEAK
    except Exception as error:
        message = _users_mistake(error)
        if message is None:
            raise
        who = "lsp" if rank() == 0 else f"lsp (rank {rank()})"
        print(f"{who}: {message}", file=sys.stderr)
        return USER_ERROR


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"lsp {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in VERBS:
        raise _unknown_verb(name)
    # Environments that share torch's default folder rebuild each other's extensions.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    # OpenMP's threads spin while they wait. On cores that others use too its default costs nearly
    # everything (first_run on two cores beside two busy processes: 190 tokens a second), never
    # spinning a third where they are idle; this costs little in either. Read as torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from lsp.cli.command import execute

    return execute(VERBS[name], rest)


def overview() -> str:
    """Every verb with one example."""
    lines = [
        "lsp pretrains long-sequence language models.",
        "",
        "usage: lsp VERB [key=value …]",
        "",
    ]
    for verb in VERBS.values():
        lines += [f"  {verb.name:<15}{verb.summary}", f"                 {verb.examples[0][1]}", ""]
    lines += ["lsp VERB --help tells more; lsp --version prints the version."]
    return "\n".join(lines)


def _unknown_verb(name: str) -> UserError:
    if name.startswith("-"):
        return UserError(f"{name} is not an option of lsp: a verb comes first, {', '.join(VERBS)}")
    near = get_close_matches(name, VERBS, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"{name} is not a verb: {hint}choose one of {', '.join(VERBS)}")


def _users_mistake(error: Exception) -> str | None:
    """What to tell the user; None if the error is a bug of ours."""
    from data_pipelines.errors import DataError

    if isinstance(error, UserError | DataError):
        return str(error)
    if isinstance(error, OSError) and error.errno in MENDABLE:
        return f"{error.filename or 'writing'}: {error.strerror}"
    return None
