"""`lsp VERB --help`: groups, keys, examples, flags and exit codes."""

from __future__ import annotations

from textwrap import TextWrapper
from typing import TYPE_CHECKING

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lsp.cli.verb import Verb
from lsp.core.exit_codes import BUG, DONE, USER_ERROR
from lsp.run.compose_errors import Attempt, raise_readable, shown, without_hydra

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

FLAGS = {
    "--cfg job|hydra|all": "print the configuration and stop (--resolve, --package KEY)",
    "-m, --multirun": "one run for each combination of key=a,b values",
    "--config-dir DIR": "configs of your own beside the shipped ones, DIR/<group>/<name>.yaml",
    "--config-name NAME": f"another primary config; it begins with {'defaults: [VERB, _self_]'}",
    "--info [defaults|…]": "how the configuration is put together",
}

WIDTH = 100

EXIT_CODES = {
    DONE: "done",
    BUG: "a bug of ours, with its traceback",
    USER_ERROR: "a mistake in what was asked for, in one or two lines",
}


def help_text(verb: Verb, app: Hydra, config_name: str) -> str:
    """Everything `--help` prints for a verb.

    Raises:
        UserError: The primary config cannot be composed.
    """
    try:
        config = app.compose_config(config_name, [], RunMode.RUN)
    except Exception as error:
        raise_readable(error, Attempt(app, config_name, ()))
    chosen = OmegaConf.to_container(config.hydra.runtime.choices)
    assert isinstance(chosen, dict)
    groups = {str(group): choice for group, choice in chosen.items() if "hydra" not in str(group)}
    exit_codes = EXIT_CODES | dict(verb.exit_codes)
    sections = [
        f"usage: lsp {verb.name} [key=value …] [flags]\n\n{verb.summary}",
        _groups(app, groups),
        _keys(verb, without_hydra(config)),
        _section("Examples", [f"  # {what}\n  {command}\n" for what, command in verb.examples]),
        _section("Flags", _table({k: v.replace("VERB", verb.name) for k, v in FLAGS.items()})),
        _section("Exit codes", _table({str(code): says for code, says in exit_codes.items()})),
    ]
    return "\n\n".join(section.rstrip() for section in sections if section)


def _groups(app: Hydra, chosen: dict[str, str | None]) -> str:
    rows = {}
    indent = "\n" + " " * (max(map(len, chosen), default=0) + 4)
    wrapper = TextWrapper(WIDTH - len(indent), break_on_hyphens=False)
    for group, choice in sorted(chosen.items()):
        options = shown(app.config_loader.get_group_options(group))
        # Lines are broken between choices, below the first.
        marked = [f"[{o}]" if o == choice else o for o in options]
        rows[group] = indent.join(wrapper.wrap("  ".join(marked)))
    return _section("Groups, group=choice, the default in brackets", _table(rows)) if rows else ""


def _keys(verb: Verb, config: DictConfig) -> str:
    rows = {}
    for key, says in verb.keys.items():
        missing = OmegaConf.is_missing(config, key)
        rows[f"{key}={'…' if missing else _typed(OmegaConf.select(config, key))}"] = says
    return _section("Keys with their defaults; --cfg job shows all", _table(rows))


def _typed(value: object) -> str:
    """A value as one would type it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return "''" if value == "" else str(value)


def _table(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows)) + 2
    return [f"  {name:<{width}}{says}" for name, says in rows.items()]


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"{title}:", *lines])
