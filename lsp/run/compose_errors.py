"""What Hydra and OmegaConf raise, told as the user's mistake: key, value, and what would work."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

import yaml
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from lsp.core.errors import UserError, unknown_choice


@dataclass(frozen=True)
class Attempt:
    """What was asked for when composing failed, to find out what exists instead."""

    app: Hydra
    config_name: str
    overrides: Sequence[str]

    def known_keys(self, without: str) -> list[str]:
        """Keys of what composes without the overrides that start with a text; maybe none."""
        rest = [word for word in self.overrides if not word.lstrip("+").startswith(without)]
        try:
            config = self.app.compose_config(self.config_name, rest, RunMode.RUN)
        except Exception:  # a second mistake: it gets its own line when the first is mended
            return []
        return list(_keys(without_hydra(config)))

    def choices(self, group: str) -> list[str]:
        """Names of the configs in a group; none if there is no such group."""
        return shown(self.app.config_loader.get_group_options(group)) if group else []


def shown(options: Iterable[str]) -> list[str]:
    """The choices of a group that a user can make: the schemas are no choices."""
    return sorted(name for name in options if not name.endswith("_schema"))


def without_hydra(config: DictConfig) -> DictConfig:
    """The user's part of a composed configuration; `${hydra:…}` in it still resolves."""
    HydraConfig.instance().set_config(config)
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    config = config.copy()
    config.pop("hydra", None)
    return config


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        yield f"{prefix}{key}"
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not (child._is_missing() or child._is_none()):
            yield from _keys(child, f"{prefix}{key}.")


TYPE_WORDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def raise_readable(error: Exception, attempt: Attempt | None = None) -> NoReturn:
    """Raises the `UserError` that tells what was wrong, or the error itself if it is a bug.

    Args:
        error: What composing raised.
        attempt: What was composed, to suggest what exists.
    """
    told = _told(error, attempt)
    if told is None:
        raise error
    raise told from error


def unknown_key(full_key: str, value: object, known: Iterable[str], where: str = "") -> UserError:
    """Builds the error for a key that does not exist, with the nearest that do."""
    given = full_key if value is None else f"{full_key}={value}"
    near, siblings = _nearest(full_key, tuple(known))
    if near:
        hint = f": did you mean {' or '.join(near)}?"
    elif siblings:
        hint = f": choose one of {', '.join(siblings)}"
    else:
        hint = "; --cfg job shows every key"
    return UserError(f"{given}{where} is not a key of this configuration{hint}")


def _nearest(full_key: str, known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Up to three keys that may be meant, and all those of a node that exists."""
    parent, _, last = full_key.rpartition(".")
    siblings: dict[str, str] = {}
    elsewhere: list[str] = []
    for key in known:
        node, _, name = key.rpartition(".")
        if node == parent:
            siblings[name] = key
        elif name == last:
            elsewhere.append(key)
    short = [key for name, key in siblings.items() if _initials(name) == last]  # lr
    close = [siblings[name] for name in get_close_matches(last, siblings, n=2)]
    near = list(dict.fromkeys(short + close + elsewhere))[:3]
    return near, list(siblings) if parent or len(siblings) <= 12 else []


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def _told(error: Exception, attempt: Attempt | None) -> UserError | None:
    if isinstance(error, OverrideParseException):
        return _unparsable(error.override.removeprefix("++"))
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a config file"
        return UserError(f"{place}: {error.problem}; the file is not valid YAML")
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"a config file is not UTF-8 text: {error}")
    if isinstance(error, HydraException):
        return _composition(error, attempt)
    if isinstance(error, OmegaConfBaseException):
        return _value(error, str(error.full_key or ""), error.value)
    if attempt and "Config group override must be a string or a list" in str(error):
        return _not_a_choice(attempt)
    return None


def _not_a_choice(attempt: Attempt) -> UserError:
    """A group was given a number or null."""
    for word in attempt.overrides:
        group, _, value = word.lstrip("+").partition("=")
        choices = attempt.choices(group)
        if choices and value not in choices:
            return unknown_choice(group, value, choices)
    return UserError(f"one of {' '.join(attempt.overrides)} is not an override: write key=value")


def _unparsable(override: str) -> UserError:
    key, equals, value = override.partition("=")
    if not equals or not key:
        return UserError(f"{override!r} is not an override: write key=value, e.g. seed=1")
    if re.search(r"\[\d+\]", key):
        entry = re.sub(r"\[(\d+)\]", r".\1", key)
        return UserError(f"{override} cannot be read: write {entry}={value}")
    if value[:1] in ("[", "{"):
        return UserError(
            f"{override} cannot be read: a list is written {key}=[a,b], a table {key}={{a:1}}; "
            f"quote parts with special characters, '{key}=[\"a (1)\",b]'"
        )
    quoted = value.replace('"', '\\"')
    return UserError(
        f"{override} cannot be read: quote a value with special characters, "
        + shlex.quote(f'{key}="{quoted}"')
    )


def _missing_config(error: MissingConfigException) -> UserError:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    options = shown(error.options or ())
    if not group:
        return UserError(
            f"--config-name {choice} is not found: --config-dir names the folder with your configs"
        )
    if not options:
        return UserError(f"{group}={choice} is not known: there is no group of configs '{group}'")
    return unknown_choice(group, choice, options)


def _composition(error: HydraException, attempt: Attempt | None) -> UserError:
    """Errors of one override carry it in their text; those of a file carry the file's name."""
    text, cause = str(error), error.__cause__
    line = re.search(r"To append to your config use \+(.*)", text, re.S) or re.match(
        r"Error merging override (.*)", text, re.S
    )
    if line and isinstance(cause, OmegaConfBaseException):
        override = line[1].strip()
        key, _, value = override.lstrip("+").partition("=")
        at = str(cause.full_key or "")
        entry = cause.object_type  # of a list: key=[{a: 1}], where the full key is `a`
        if dataclasses.is_dataclass(entry) and at.partition(".")[0] != key.partition(".")[0]:
            if isinstance(cause, ConfigAttributeError | ConfigKeyError):
                fields = [field.name for field in dataclasses.fields(entry)]
                return unknown_key(at, None, fields, f" (in {override})")
            return _value(cause, f"{key}: {at}", cause.value)
        inside = at.startswith(f"{key}.")  # key={a:1}, where `a` is what is wrong
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) or key.startswith(f"{at}."):
            known = attempt.known_keys(override) if attempt else ()
            return unknown_key(at, None, known) if inside else unknown_key(key, value, known)
        return _value(cause, key, value)
    in_file = re.match(r"In '(.+?)': (\w+) raised while composing config:\n(.*)", text, re.S)
    if in_file:
        file, kind, message = in_file.groups()
        full_key = re.search(r"full_key: (\S+)", message)
        key = full_key[1] if full_key else ""
        if kind in ("ConfigKeyError", "ConfigAttributeError") and key:
            known = attempt.known_keys(file.rpartition("/")[0] + "=") if attempt else ()
            return unknown_key(key, None, known, f" (in {file}.yaml)")
        if "is not a subclass of" in message and not key:
            group = file.rpartition("/")[0]
            return UserError(f"{group} takes one choice at a time: write {group}=<name>")
        return UserError(f"{file}.yaml: {key}: {_one_line(message)}")
    ambiguous = re.match(r"Ambiguous value for argument '(.*?)'\n1", text, re.S)
    if ambiguous:
        key, _, value = ambiguous[1].partition("=")
        return UserError(
            f"{ambiguous[1]} is several values: -m runs each of them, {key}=[{value}] is a list, "
            + shlex.quote(f'{key}="{value}"')
            + " is one text"
        )
    twice = re.match(r"Multiple values for (\S+)\.", text)
    if twice:
        return UserError(f"{twice[1]} is chosen already: write {twice[1]}=<name> without +")
    if isinstance(cause, OmegaConfBaseException):
        return _value(cause, str(cause.full_key or ""), cause.value)
    return UserError(_one_line(text))


def _value(error: OmegaConfBaseException, key: str, value: object) -> UserError:
    """A key that exists, with a value that does not fit it."""
    message = str(error)
    if isinstance(error, MissingMandatoryValue):
        return UserError(f"{key} is missing: give {key}=…, --help explains the keys")
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and key:
        return unknown_key(key, None, ())
    if isinstance(error, ValidationError):
        wanted = re.search(r"could not be converted to (\w+)", message)
        if wanted:
            return UserError(f"{key}={value} has to be {TYPE_WORDS.get(wanted[1], wanted[1])}")
        if "is not a valid bool" in message:
            return UserError(f"{key}={value} has to be true or false")
        if "is not Optional" in message:
            return UserError(f"{key}=null has to have a value")
        if "is not a ListConfig" in message:
            return UserError(f"{key}={value} has to be a list: write {key}=[{value}]")
        if "to string" in message:
            return UserError(f"{key}={value} has to be one text, not a list or a table")
        if "is not a subclass of" in message:
            return UserError(f"{key}={value} does not fit: give keys below it, e.g. {key}.<name>=…")
    given = key if value is None else f"{key}={value}"
    return UserError(f"{given}: {_one_line(message)}" if key else _one_line(message))


def _one_line(text: str) -> str:
    """The parts of a message that speak to the user, on one line."""
    noise = ("full_key:", "object_type=", "reference_type=", "See https:", "provider=")
    lines = [line.strip() for line in text.splitlines()]
    return "; ".join(line.rstrip(".") for line in lines if line and not line.startswith(noise))
