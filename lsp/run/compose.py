"""From words on the command line to one dataclass, with the user's mistakes told in a line or two.

Hydra's own entry point prints errors in its way and exits with 1, so its parts are used directly:
the same search path, the same composition, the same flags, but exceptions come through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import lsp
from lsp.core.errors import UserError, unknown_choice
from lsp.models import catalog
from lsp.models.hub.config import HubConfig
from lsp.run.compose_errors import Attempt, raise_readable, unknown_key, without_hydra
from lsp.run.config import (
    ARCHITECTURES,
    LENGTHENING,
    NATIVE,
    OPTIMIZERS,
    ArchitecturesConfig,
    ConsolidateConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    ImportConfig,
    RunConfig,
    register_schemas,
)

CONFIGS: dict[str, type] = {
    "train": RunConfig,
    "prepare": RunConfig,
    "verify": RunConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "export": ExportConfig,
    "consolidate": ConsolidateConfig,
    "import": ImportConfig,
    "architectures": ArchitecturesConfig,
}
"""What each primary config in `conf/` becomes."""

T = TypeVar("T")

AUTO = "auto"

_OPEN = tuple(
    f"architecture.{node}{end}" for node in ("model_init_config", "generator") for end in ".="
)
"""Tables with keys that only `transformers` knows: Hydra would ask for a plus before new ones."""

_BESIDE = "configs of your own go into --config-dir, e.g. my_configs/optimizer/mine.yaml"


def conf_dir() -> Path:
    """The shipped configs: inside the package when installed, beside it in a checkout."""
    package = Path(lsp.__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def hydra_app(
    verb: str, config_dirs: Sequence[str] = (), main_dir: str | Path | None = None
) -> Hydra:
    """Hydra over the shipped configs.

    Args:
        verb: Name of the job, which is also that of the primary config.
        config_dirs: Folders with the user's own configs, searched after the shipped ones.
        main_dir: Searched instead of the shipped ones.

    Raises:
        UserError: A folder does not exist.
    """
    version.setbase("1.3")
    register_schemas()
    main_path = Path(main_dir or conf_dir()).resolve()
    if not main_path.is_dir():
        raise UserError(f"--config-path {main_path} is not a folder; {_BESIDE}")
    search_path = create_config_search_path(f"file://{main_path}")
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder} is not a folder; {_BESIDE}")
        search_path.prepend(
            provider="command-line",
            path=f"file://{Path(folder).resolve()}",
            anchor=SearchPathQuery(provider="schema"),
        )
    loader = ConfigLoaderImpl(search_path)
    if CONFIGS[verb] is not RunConfig:
        loader.repository = _WithoutGroups(search_path)
    return Hydra(task_name=verb, config_loader=loader)


class _WithoutGroups(ConfigRepository):  # type: ignore[misc]
    """The shipped configs for verbs that have plain keys only.

    Their `checkpoint=best` and `architecture=reformer` are values; Hydra would otherwise take
    them for choices of the groups of the same name, which belong to `lsp train`.
    """

    def group_exists(self, config_path: str) -> bool:
        return config_path.startswith("hydra") and bool(super().group_exists(config_path))


def compose(app: Hydra, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Composes one configuration, without Hydra's own node.

    Raises:
        UserError: An override or a file cannot work.
    """
    config = _composed(app, config_name, overrides)
    if OmegaConf.select(config, "objective.name") != AUTO:
        return config
    # Composed once more, so that keys of the objective find the one that they belong to.
    return _composed(app, config_name, [*overrides, f"objective={_usual_objective(config)}"])


def _usual_objective(config: DictConfig) -> str:
    """What an architecture is trained for where the user does not say."""
    kind = OmegaConf.get_type(config, "architecture")
    if kind is HubConfig:
        named = {key: config.architecture[key] for key in ("model_type", "name")}
        with suppress(UserError):  # which is told where everything else is
            return HubConfig(**named).row.objectives[0]
    names = {name for name, known in ARCHITECTURES.items() if known is kind}
    return next((e.objectives[0] for e in catalog.NATIVE if e.name in names), "causal")


def _composed(app: Hydra, config_name: str, overrides: Sequence[str]) -> DictConfig:
    overrides = [f"++{word}" if word.startswith(_OPEN) else word for word in overrides]
    try:
        config = app.compose_config(config_name, list(overrides), RunMode.RUN)
    except Exception as error:
        raise_readable(error, Attempt(app, config_name, overrides))
    return without_hydra(config)


def to_dataclass(config: DictConfig, expected: type[T]) -> T:
    """Turns a composed configuration into the dataclasses it describes.

    Raises:
        UserError: A value is missing or refused, or a key was added that nothing reads.
    """
    for full_key, known in _added_keys(config):
        raise unknown_key(full_key, OmegaConf.select(config, full_key), known)
    architecture = None
    try:
        if expected is ImportConfig:
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            assert isinstance(values, dict)
            return _import_config(values)  # type: ignore[return-value]
        if issubclass(expected, RunConfig) and OmegaConf.get_type(config) is RunConfig:
            architecture = OmegaConf.get_type(config, "architecture")
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise_readable(error)
    except ValueError as error:
        raise in_architecture(error, architecture) from error
    if not isinstance(result, expected):
        raise UserError(
            "the config given with --config-name does not build on a shipped one: begin its "
            "defaults with the name of the verb, e.g. defaults: [train, _self_]"
        )
    return result


def load_config(
    verb: str,
    overrides: Sequence[str] = (),
    *,
    config_name: str | None = None,
    config_dirs: Sequence[str] = (),
) -> Any:
    """The configuration of a verb, as its dataclass (see `CONFIGS`).

    Raises:
        UserError: An override, a file or a value cannot work.
    """
    app = hydra_app(verb, config_dirs)
    return to_dataclass(compose(app, config_name or verb, overrides), CONFIGS[verb])


def load_train_config(
    overrides: Sequence[str] = (),
    *,
    config_name: str = "train",
    config_dirs: Sequence[str] = (),
) -> RunConfig:
    """The configuration of `lsp train`, as `load_config` gives it."""
    config = load_config("train", overrides, config_name=config_name, config_dirs=config_dirs)
    assert isinstance(config, RunConfig)
    return config


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain containers, fit for YAML and for `from_plain`.

    The two nodes that are one of several classes carry the name of theirs.
    """
    plain = dataclasses.asdict(config)
    name = _name_of(config.architecture, ARCHITECTURES)
    key = "model_type" if name in NATIVE else "from"  # which has a model_type of its own
    plain["architecture"] = {key: name, **plain["architecture"]}
    plain["optimizer"] = {"name": _name_of(config.optimizer, OPTIMIZERS), **plain["optimizer"]}
    return plain


def from_plain(plain: Mapping[str, Any]) -> RunConfig:
    """Reads what `to_plain` gave.

    Raises:
        UserError: A key or a value is not known, or refused.
    """
    values = {key: dict(node) if isinstance(node, Mapping) else node for key, node in plain.items()}
    try:
        node = values["architecture"]
        architecture = node.pop("from" if "from" in node else "model_type")
        optimizer = values["optimizer"].pop("name")
    except (KeyError, AttributeError) as error:
        raise UserError(
            "the configuration has no architecture.model_type or no optimizer.name: it is not the "
            "config.yaml of a run"
        ) from error
    if architecture not in ARCHITECTURES:
        raise unknown_choice("architecture.model_type", architecture, ARCHITECTURES)
    if optimizer not in OPTIMIZERS:
        raise unknown_choice("optimizer.name", optimizer, OPTIMIZERS)
    schema = OmegaConf.structured(RunConfig)
    schema.architecture = OmegaConf.structured(ARCHITECTURES[architecture])
    schema.optimizer = OmegaConf.structured(OPTIMIZERS[optimizer])
    try:
        merged = OmegaConf.merge(schema, values)
    except OmegaConfBaseException as error:
        raise_readable(error)
    assert isinstance(merged, DictConfig)
    return to_dataclass(merged, RunConfig)


def save_yaml(config: RunConfig) -> str:
    """The configuration as the text of a run's `config.yaml`."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> RunConfig:
    """Reads a run's `config.yaml`.

    Raises:
        UserError: The file is missing, or not what `save_yaml` writes.
    """
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise UserError(f"{path} is not the config.yaml of a run")
    return from_plain(plain)


def in_architecture(error: ValueError, architecture: type | None) -> UserError:
    """The same mistake, with the key as it is typed: configs of models know no `architecture.`."""
    message = str(error)
    if architecture is not None and dataclasses.is_dataclass(architecture):
        key = message.partition("=")[0].partition(".")[0]
        if key in {field.name for field in dataclasses.fields(architecture)}:
            message = f"architecture.{message}"
    return UserError(message)


def _import_config(values: dict[Any, Any]) -> ImportConfig:
    known = ["from", "out", "architecture", *LENGTHENING, "objective"]
    for key, value in values.items():
        if key not in known:
            raise unknown_key(str(key), value, known)
    return ImportConfig(*(values[key] for key in known))


def _name_of(config: object, classes: Mapping[str, type]) -> str:
    return next(name for name, cls in classes.items() if type(config) is cls)


def _added_keys(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Keys that a `+key=value` added beside the fields of a dataclass, which nothing would read."""
    schema = OmegaConf.get_type(config)
    known = None
    if dataclasses.is_dataclass(schema):
        known = [f.name for f in dataclasses.fields(schema)]
    for key in map(str, config):
        full_key = f"{prefix}{key}"
        if known is not None and key not in known:
            yield full_key, [prefix + name for name in known]
        elif not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(config, key):
            child = config[key]
            if isinstance(child, DictConfig):
                yield from _added_keys(child, f"{full_key}.")
