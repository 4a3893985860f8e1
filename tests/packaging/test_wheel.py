"""A wheel works away from the checkout: `lsp` finds its configs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lsp
from lsp.run.compose import conf_dir

ROOT = Path(lsp.__file__).resolve().parents[1]


def test_checkout_has_its_configs_beside_the_package():
    assert conf_dir() == ROOT / "conf"


def test_installed_package_has_its_configs_inside(tmp_path, monkeypatch):
    (tmp_path / "lsp" / "conf").mkdir(parents=True)
    monkeypatch.setattr(lsp, "__file__", str(tmp_path / "lsp" / "__init__.py"))
    assert conf_dir() == tmp_path / "lsp" / "conf"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, by the build backend alone: no network, nothing left."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("lsp", "data_pipelines", "conf"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (path,) = out.glob("lsp-*.whl")
    return path


def test_wheel_holds_packages_configs_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"lsp/conf/{file.relative_to(ROOT / 'conf')}" for file in _files(ROOT / "conf")}
    assert shipped <= names
    assert {"lsp/__main__.py", "data_pipelines/config.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"lsp", "data_pipelines"}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.yaml") if path.is_file()]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel's content in a folder of its own."""
    target = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def _lsp(installed: Path, cwd: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "lsp", *words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_lsp_uses_its_own_configs(installed, tmp_path):
    paths = _lsp(installed, tmp_path, "train", "--info", "searchpath")
    assert str(installed / "lsp" / "conf") in paths
    assert str(ROOT) not in paths
    assert list(tmp_path.iterdir()) == []


def test_installed_lsp_composes_as_the_checkout_does(installed, tmp_path):
    words = ("train", "--cfg", "job", "experiment=debug", "optimizer=muon")
    assert _lsp(installed, tmp_path, *words) == _lsp(ROOT, tmp_path, *words)


@pytest.mark.slow
def test_pip_installs_the_wheel(wheel, tmp_path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True, capture_output=True)
    assert (target / "bin" / "lsp").is_file()
    train = ("train", "experiment=debug", "trainer.max_steps=4")
    _lsp(target, elsewhere, *train)
    assert (elsewhere / "checkpoints" / "debug" / "latest").is_file()
