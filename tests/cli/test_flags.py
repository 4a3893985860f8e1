"""Hydra's flags, for every verb."""

import logging

import pytest
import yaml

from lsp.cli.main import VERBS, main

NEEDED = {
    "evaluate": ["run=x"],
    "generate": ["run=x"],
    "export": ["run=x"],
    "import": ["from=x"],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("verb", VERBS)
def test_cfg_job_prints_the_configuration(verb, capsys, tmp_path):
    assert main([verb, *NEEDED.get(verb, []), "--cfg", "job"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert "hydra" not in config
    assert set(VERBS[verb].keys) <= set(_flat(config))
    assert list(tmp_path.iterdir()) == []


def _flat(node, prefix=""):
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


@pytest.mark.parametrize("verb", VERBS)
def test_cfg_works_with_what_is_still_missing(verb, capsys):
    assert main([verb, "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)


def test_cfg_hydra_leaves_no_folders(capsys):
    assert main(["train", "--cfg", "hydra"]) == 0
    hydra = yaml.safe_load(capsys.readouterr().out)["hydra"]
    assert hydra["output_subdir"] is None
    assert hydra["job"]["chdir"] is False
    assert hydra["run"]["dir"] == "."


def test_cfg_all_has_both(capsys):
    assert main(["train", "--cfg", "all"]) == 0
    assert {"hydra", "optimizer"} <= set(yaml.safe_load(capsys.readouterr().out))


def test_cfg_package(capsys):
    assert main(["train", "--cfg", "job", "--package", "optimizer", "optimizer=muon"]) == 0
    assert "momentum: 0.95" in capsys.readouterr().out
    assert main(["train", "--cfg", "job", "--package", "nothing"]) == 2


def test_cfg_resolve(capsys):
    words = ["train", "--cfg", "job", "run_name=seed_${seed}"]
    assert main(words) == 0
    assert "run_name: seed_${seed}" in capsys.readouterr().out
    assert main([*words, "--resolve"]) == 0
    assert "run_name: seed_0" in capsys.readouterr().out


def test_flags_may_stand_anywhere(capsys):
    assert main(["train", "seed=7", "--cfg", "job", "run_name=x"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["seed"], config["run_name"]) == (7, "x")


@pytest.fixture
def _root_logger():
    """Hydra prints `--info` through the root logger and leaves it changed."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.mark.usefixtures("_root_logger")
@pytest.mark.parametrize("what", ["defaults", "defaults-tree", "searchpath", "config"])
def test_info(what, capsys):
    assert main(["train", "--info", what]) == 0
    assert capsys.readouterr().out != ""


@pytest.fixture
def my_configs(tmp_path):
    folder = tmp_path / "mine"
    (folder / "optimizer").mkdir(parents=True)
    (folder / "optimizer" / "slow.yaml").write_text(
        "defaults: [adamw_schema, _self_]\nlearning_rate: 1e-5\n"
    )
    (folder / "experiment").mkdir()
    (folder / "experiment" / "night.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /optimizer: slow\n  - override /schedule: linear\n"
        "run_name: night\ntrainer: {max_steps: 7}\n"
    )
    (folder / "my_train.yaml").write_text(
        "defaults: [train, {override optimizer: muon}, _self_]\nseed: 5\n"
    )
    return str(folder)


def test_config_dir_adds_a_choice_to_a_group(my_configs, capsys):
    assert main(["train", "--config-dir", my_configs, "--cfg", "job", "optimizer=slow"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["optimizer"]["learning_rate"] == 1e-5


def test_config_dir_adds_an_experiment(my_configs, capsys):
    words = ["train", "--config-dir", my_configs, "--cfg", "job", "experiment=night"]
    assert main([*words, "trainer.max_steps=9"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["run_name"] == "night"
    assert config["optimizer"]["learning_rate"] == 1e-5
    assert config["schedule"]["name"] == "linear"
    assert config["trainer"]["max_steps"] == 9  # the command line has the last word


def test_config_dir_shows_in_help(my_configs, capsys):
    assert main(["train", "--config-dir", my_configs, "--help"]) == 0
    assert "slow" in capsys.readouterr().out


def test_config_name(my_configs, capsys):
    words = ["train", "--config-dir", my_configs, "--config-name", "my_train", "--cfg", "job"]
    assert main(words) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["seed"] == 5
    assert "momentum" in config["optimizer"]
