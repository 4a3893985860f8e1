"""What every verb does with its words: Hydra's flags, then the composed configuration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from hydra.types import RunMode

from lsp.cli.help import help_text
from lsp.cli.sweep import sweep
from lsp.cli.verb import Verb
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE, USER_ERROR
from lsp.core.ranks import leave_quietly, local_rank
from lsp.run.compose import CONFIGS, compose, hydra_app, to_dataclass
from lsp.run.compose_errors import Attempt, raise_readable

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; values are written key=value, --help lists the flags")


def execute(verb: Verb, words: Sequence[str]) -> int:
    """Runs a verb with the words after it and returns its exit code.

    Raises:
        UserError: The words, or what they describe, cannot work.
    """
    args = _parser(verb).parse_intermixed_args(words)
    app = hydra_app(verb.name, args.config_dir, args.config_path)
    name = args.config_name or verb.name
    if args.help:
        print(help_text(verb, app, name))
        return DONE
    if args.multirun:
        return sweep(app, verb, name, args)
    overrides = verb.rewrite(args.overrides)
    if args.cfg or args.info:
        try:
            if args.cfg:
                app.show_cfg(name, overrides, args.cfg, args.package, args.resolve)
            else:
                app.show_info(args.info, name, overrides, RunMode.RUN)
        except SystemExit:  # Hydra has said that --package names nothing
            return USER_ERROR
        except Exception as error:
            raise_readable(error, Attempt(app, name, overrides))
        return DONE
    try:
        config: Any = to_dataclass(compose(app, name, overrides), CONFIGS[verb.name])
    except ValueError:
        if local_rank() != 0:  # every rank composes the same, and one per machine tells
            leave_quietly(USER_ERROR)
        raise
    return verb.run(config)


def _parser(verb: Verb) -> argparse.ArgumentParser:
    """The flags that Hydra has, under Hydra's names."""
    parser = _Parser(prog=f"lsp {verb.name}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=INFO)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--config-path", "-cp")
    return parser
