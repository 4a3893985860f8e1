"""Checkpoints are whole or not there; the newest whole one is found, the right ones are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lsp.checkpointing.config import CheckpointConfig
from lsp.checkpointing.files import (
    IncompleteError,
    publish,
    read_tensors,
    save_tensors,
    seal,
    shards,
    verify,
    write_tensors,
    write_text,
)
from lsp.checkpointing.store import CheckpointStore, read_state, read_weights, write_state
from lsp.core.errors import UserError


def save(store: CheckpointStore, step: int, loss: float | None = None, **state: object) -> Path:
    aside = store.begin(step)
    write_tensors(aside, "model", [("weight", torch.full((64, 64), float(step)))])
    write_state(aside, {"step": step, "validation_loss": loss, "validation_step": step} | state)
    return store.commit(aside, step)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    said: list[str] = []
    made = CheckpointStore(tmp_path / "run", warn=said.append)
    made.said = said  # type: ignore[attr-defined]
    for step in (10, 20, 30):
        save(made, step, loss=1.0)
    return made


def test_latest_is_the_newest(store):
    assert store.latest() == store.path(30)
    assert (store.run_dir / "latest").read_text() == "step-00000030\n"
    assert read_state(store.path(30))["step"] == 30
    assert read_weights(store.path(30))["weight"][0, 0] == 30
    assert store.said == []


def test_no_run_has_no_checkpoint(tmp_path):
    assert CheckpointStore(tmp_path / "nothing").latest() is None


def truncate(folder: Path) -> None:
    path = folder / "model-00001.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def flip(folder: Path) -> None:
    path = folder / "model-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def flip_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"step": 30', '"step": 31'))


def lose(folder: Path) -> None:
    (folder / "state.json").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def tear_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 20)


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


DAMAGE: list[Callable[[Path], None]] = [
    truncate,
    flip,
    flip_state,
    lose,
    lose_manifest,
    tear_manifest,
    empty_manifest,
    shutil.rmtree,
]


@pytest.mark.parametrize("damage", DAMAGE[:-1], ids=lambda f: f.__name__)
def test_damage_is_noticed_and_passed_over(store, damage):
    damage(store.path(30))
    with pytest.raises(IncompleteError):
        verify(store.path(30))
    assert store.latest() == store.path(20)
    assert len(store.said) == 1
    assert "step-00000030 is damaged" in store.said[0]
    with pytest.raises(UserError, match="step-00000030 is damaged"):
        store.find("30")


def test_a_checkpoint_that_is_gone_is_not_missed(store):
    shutil.rmtree(store.path(30))
    assert store.latest() == store.path(20)


@pytest.mark.parametrize("which", ["latest", "30"])
def test_deleted_by_a_training_while_it_is_read(store, monkeypatch, which):
    """Reading a large checkpoint takes as long as a training may take to replace it."""
    import lsp.checkpointing.store as module

    original = module.verify

    def slow(folder: Path) -> None:
        if folder == store.path(30):
            save(store, 40)
            store.retain(CheckpointConfig(keep_last=1, keep_best=False))
        original(folder)

    monkeypatch.setattr(module, "verify", slow)
    if which == "latest":
        assert store.find(which) == store.path(40)
        assert store.said == []
    else:
        with pytest.raises(UserError, match="step-00000030 was deleted while it was read"):
            store.find(which)


def test_what_is_open_can_be_read_after_its_deletion(store):
    weights = read_weights(store.path(30))
    shutil.rmtree(store.path(30))
    assert weights["weight"][0, 0] == 30


def test_all_damaged_is_told(store):
    for step, damage in zip((10, 20, 30), DAMAGE, strict=False):
        damage(store.path(step))
    with pytest.raises(
        UserError, match=r"none of the 3 checkpoint\(s\) .* choose another run_name"
    ):
        store.latest()


def test_damaged_ones_do_not_take_the_place_of_good_ones(store):
    truncate(store.path(30))
    truncate(store.path(20))
    assert store.latest() == store.path(10)
    store.set_aside_after(10)
    assert store.steps() == [10]
    assert (store.run_dir / "latest").read_text() == "step-00000010\n"
    assert (store.run_dir / "step-00000030.damaged").is_dir()
    save(store, 15)
    assert store.retain(CheckpointConfig(keep_last=1, keep_best=False)) == [10]
    assert store.latest() == store.path(15)
    # It happens again, at the same step.
    save(store, 30)
    store.set_aside_after(15)
    assert store.steps() == [15]


def test_a_step_is_saved_again(store):
    flip(store.path(30))
    save(store, 30)
    assert store.latest() == store.path(30)
    assert sorted(p.name for p in store.run_dir.iterdir() if p.name.startswith(".")) == []


def test_a_killed_save_leaves_nothing_that_counts(store):
    aside = store.begin(40)
    write_tensors(aside, "model", [("weight", torch.ones(9))])
    sealed = store.begin(50)
    seal(sealed)  # killed just before the rename
    store.path(10).rename(store.run_dir / ".step-00000010.deleted")  # killed while deleting
    assert store.steps() == [20, 30]
    assert store.latest() == store.path(30)
    store.clean()
    assert sorted(p.name for p in store.run_dir.iterdir()) == [
        "latest",
        "step-00000020",
        "step-00000030",
    ]
    assert save(store, 40) == store.path(40)


def test_no_two_saves_share_a_folder(store):
    """A process that was given up for dead writes into no other session's checkpoint."""
    first, second = store.begin(40), store.begin(40)
    (first / "junk").write_text("x")
    assert list(second.iterdir()) == []
    store.clean()
    assert not first.exists()
    assert not second.exists()


def test_publish_replaces_in_one_move(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    publish(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"keep_last": 1, "keep_best": False}, [100]),
        ({"keep_last": 3, "keep_best": False}, [80, 90, 100]),
        ({"keep_last": 50, "keep_best": False}, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        ({"keep_last": 1, "keep_best": True}, [40, 100]),
        ({"keep_last": 1, "keep_every": 30, "keep_best": False}, [30, 60, 90, 100]),
        ({"keep_last": 2, "keep_every": 50, "keep_best": True}, [40, 50, 90, 100]),
    ],
    ids=["last", "last-3", "fewer-than-kept", "best", "every-30", "all-three"],
)
def test_retention(tmp_path, config, kept):
    store = CheckpointStore(tmp_path)
    losses = {10: 3.0, 40: 1.0, 60: float("nan"), 70: 1.5, 100: 2.0}
    for step in range(10, 101, 10):
        save(store, step, losses.get(step))
    gone = store.retain(CheckpointConfig(**config))
    assert store.steps() == kept
    assert sorted(gone + kept) == list(range(10, 101, 10))
    assert not list(tmp_path.glob(".step*"))


def test_best_needs_a_loss_of_its_own_weights(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 10, 2.0)
    save(store, 15, 1.0, validation_step=14)  # measured before the last step
    assert store.best_step() == 10
    assert store.find("best") == store.path(10)


@pytest.mark.parametrize("which", ["best", "25", "newest"])
def test_find_names_what_there_is(tmp_path, which):
    store = CheckpointStore(tmp_path)
    for step in (10, 20):
        save(store, step)
    assert store.find("10") == store.path(10)
    assert store.find("latest") == store.path(20)
    with pytest.raises(UserError, match=rf"checkpoint={which} .*there are 10, 20"):
        store.find(which)


def test_find_in_an_empty_run(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        CheckpointStore(tmp_path).find("latest")


def test_long_runs_are_in_order(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (99_999_999, 100_000_000):
        save(store, step)
    assert store.steps() == [99_999_999, 100_000_000]
    assert store.latest() == store.path(100_000_000)


def test_shared_memory_is_saved_as_independent_tensors(tmp_path):
    table = torch.arange(12.0).view(3, 4)
    tensors = {"tied": table, "head": table, "column": table[:, 1], "transposed": table.T}
    write_tensors(tmp_path, "model", tensors.items())
    found = read_tensors(tmp_path, "model")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], value) for key, value in tensors.items())
    found["tied"].zero_()
    assert torch.equal(found["head"], table)


def test_large_sets_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("lsp.checkpointing.files.SHARD_BYTES", 4096)
    tensors = {f"weight-{n}": torch.full((400,), float(n)) for n in range(7)}
    tensors["huge"] = torch.rand(5000)
    write_tensors(tmp_path, "model", tensors.items())
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 5
    found = read_tensors(tmp_path, "model")
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_processes_share_out_the_tensors(monkeypatch, world_size):
    monkeypatch.setattr("lsp.checkpointing.files.SHARD_BYTES", 4096)
    tensors = {f"weight-{n}": torch.full((n * 50,), float(n)) for n in range(1, 6)}
    found: dict[str, torch.Tensor] = {}
    names: list[str] = []
    for rank in range(world_size):
        consumed = []
        stream = ((name, consumed.append(name) or value) for name, value in tensors.items())
        for name, shard in shards("model", stream, rank, world_size):
            assert not found.keys() & shard.keys()
            names.append(name)
            found |= shard
        assert consumed == list(tensors)  # every process takes part in every collective
    assert len(set(names)) == len(names) >= min(world_size, 2) - 1
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_shares_are_even():
    tensors = [(str(n), torch.empty(size)) for n, size in enumerate((900, 300, 300, 300, 10, 8))]
    loads = [
        sum(
            value.numel()
            for _, shard in shards("model", tensors, rank, 2)
            for value in shard.values()
        )
        for rank in range(2)
    ]
    assert loads == [910, 908]


def test_files_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save_tensors({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_text_is_replaced_or_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "latest"
    write_text(path, "first")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "second")
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


@pytest.mark.parametrize("content", [None, "{", "\0\0"], ids=["missing", "torn", "zeros"])
def test_unreadable_state_is_a_users_matter(tmp_path, content):
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_state(tmp_path)


def test_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path)


def test_manifest_lists_every_file(store):
    files = json.loads((store.path(30) / "manifest.json").read_text())["files"]
    assert files.keys() == {"model-00001.safetensors", "state.json"}


@pytest.mark.parametrize(
    "values",
    [{"resume": "maybe"}, {"every": -1}, {"keep_last": 0}, {"keep_every": -5}, {"root": " "}],
    ids=lambda v: next(iter(v)),
)
def test_config_refuses(values):
    with pytest.raises(UserError, match=f"checkpoint.{next(iter(values))}"):
        CheckpointConfig(**values)
