"""Every file in conf/ composes, and says what its name promises."""

import dataclasses

import pytest
import yaml

from lsp.models import registry
from lsp.run.compose import CONFIGS, conf_dir, load_config, load_train_config
from lsp.run.config import ARCHITECTURES, OPTIMIZERS, RunConfig
from lsp.run.validate import validate

# What a choice cannot do without.
NEEDED = {
    "data/text": ["data.paths=[a.txt]"],
    "data/jsonl": ["data.paths=[a.jsonl]"],
    "data/parquet": ["data.paths=[a.parquet]"],
    "data/hub_dataset": ["data.name=x"],
    "parallelism/zero3_nvme": ["parallelism.offload.nvme_path=x"],
    "tokenizer/pretrained": ["tokenizer.name=x"],
}
PRIMARY = sorted(file.stem for file in conf_dir().glob("*.yaml"))
PRESETS = sorted(
    f"{file.parent.name}/{file.stem}"
    for file in conf_dir().glob("*/*.yaml")
    if file.parent.name != "hydra"
)
GROUPS = sorted({preset.partition("/")[0] for preset in PRESETS} - {"experiment"})
EXPERIMENTS = [preset for preset in PRESETS if preset.startswith("experiment/")]

# The field of each group's dataclass that names the choice.
NAMED_BY = {
    "objective": "name",
    "data": "source",
    "tokenizer": "kind",
    "packing": "strategy",
    "parallelism": "strategy",
    "precision": "name",
    "memory": "residual",
    "schedule": "name",
    "tracking": "name",
}


def compose_preset(preset: str) -> RunConfig:
    group, _, choice = preset.partition("/")
    return load_train_config([f"{group}={choice}", *NEEDED.get(preset, [])])


def test_there_is_one_primary_config_for_each_verb():
    assert set(PRIMARY) == set(CONFIGS)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_composes(preset):
    config = compose_preset(preset)
    group, _, choice = preset.partition("/")
    if group in NAMED_BY and preset != "objective/auto":  # which stands for another
        assert getattr(getattr(config, group), NAMED_BY[group]) == choice
    if group == "optimizer":
        assert type(config.optimizer) is OPTIMIZERS[choice]
    if group == "architecture":
        assert type(config.architecture) in ARCHITECTURES.values()


@pytest.mark.parametrize("preset", [p for p in PRESETS if p not in EXPERIMENTS])
def test_preset_begins_with_its_schema(preset):
    text = (conf_dir() / f"{preset}.yaml").read_text()
    first, *rest = yaml.safe_load(text)["defaults"]
    assert first.endswith("_schema")
    *chosen, last = rest
    assert last == "_self_"
    assert all(key.startswith("override /") for choice in chosen for key in choice)
    assert "@package" not in text


@pytest.mark.parametrize("preset", EXPERIMENTS)
def test_experiments_are_global_and_name_their_run(preset):
    assert (conf_dir() / f"{preset}.yaml").read_text().startswith("# @package _global_\n")
    config = compose_preset(preset)
    assert config.run_name == preset.partition("/")[2]
    validate(config)


def test_default_run_is_valid():
    validate(load_train_config())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("preset", EXPERIMENTS)
def test_experiments_go_with_every_optimizer(preset, optimizer):
    experiment = preset.partition("/")[2]
    config = load_train_config([f"experiment={experiment}", f"optimizer={optimizer}"])
    assert type(config.optimizer) is OPTIMIZERS[optimizer]


@pytest.mark.parametrize("group", GROUPS)
def test_a_typo_in_any_group_is_refused_with_its_full_key(group):
    with pytest.raises(ValueError, match=rf"^{group}\.zzz=1 is not a key"):
        load_train_config([f"{group}.zzz=1"])


def test_no_config_depends_on_the_time():
    for file in conf_dir().rglob("*.yaml"):
        assert "${now" not in file.read_text(), file


def test_groups_are_the_nodes_of_a_run():
    nodes = {field.name for field in dataclasses.fields(RunConfig)}
    assert set(GROUPS) <= nodes


def test_schemas_are_those_of_the_registry():
    assert {name: row.config_class for name, row in registry.ARCHITECTURES.items()} == ARCHITECTURES
    assert set(load_preset_names("architecture")) >= set(ARCHITECTURES)
    assert set(load_preset_names("optimizer")) == set(OPTIMIZERS)


def load_preset_names(group: str) -> list[str]:
    return [p.partition("/")[2] for p in PRESETS if p.startswith(f"{group}/")]


@pytest.mark.parametrize("verb", sorted(v for v in CONFIGS if CONFIGS[v] is not RunConfig))
def test_small_configs_have_the_defaults_of_their_dataclass(verb):
    needed = {"import": "from", "architectures": "name"}.get(verb, "run")
    first = "source" if verb == "import" else needed
    assert load_config(verb, [f"{needed}=x"]) == CONFIGS[verb](**{first: "x"})


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["run=checkpoints/first_run"], "exported/first_run"),
        (["run=checkpoints/first_run/"], "exported/first_run"),
        (["run=x", "out=there"], "there"),
    ],
    ids=["default", "slash", "given"],
)
def test_export_folder(words, folder):
    assert str(load_config("export", words).folder) == folder


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["from=google/reformer-enwik8"], "checkpoints/reformer-enwik8"),
        (["from=exported/first_run/"], "checkpoints/first_run"),
        (["from=x", "out=there"], "there"),
    ],
    ids=["hub", "folder", "given"],
)
def test_import_folder(words, folder):
    assert str(load_config("import", words).folder) == folder


@pytest.mark.parametrize("checkpoint", ["latest", "best", "100"])
@pytest.mark.parametrize("verb", ["evaluate", "generate", "export"])
def test_checkpoint_is_a_value_although_a_group_has_its_name(verb, checkpoint):
    config = load_config(verb, ["run=x", f"checkpoint={checkpoint}"])
    assert config.checkpoint == checkpoint


def test_architecture_of_import_is_a_value():
    config = load_config("import", ["from=x", "architecture=reformer"])
    assert config.architecture == "reformer"
