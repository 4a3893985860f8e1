"""Weight files: whole, in shards, as pickles, and damaged."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from lsp.core.errors import UserError
from lsp.hub import reload
from lsp.hub.weights import (
    SAFE_INDEX,
    cast,
    fingerprint,
    parse_size,
    read_published_weights,
    write_weights,
)


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{n}.weight": torch.randn(10, 10, generator=generator) for n in range(5)}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("1.5kb", 1500), ("12B", 12), (700, 700)],
)
def test_sizes_are_decimal_as_on_the_hub(text, size):
    assert parse_size("max_shard_size", text) == size


@pytest.mark.parametrize("text", ["", "five", "-1GB", "0", "5GiB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match=r"max_shard_size=.*5GB"):
        parse_size("max_shard_size", text)


def test_one_file_below_the_limit(tmp_path, weights):
    write_weights(weights, tmp_path, 10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_equal(read_published_weights(tmp_path), weights)


def test_shards_and_an_index_above_it(tmp_path, weights):
    write_weights(weights, tmp_path, 900)
    index = json.loads((tmp_path / SAFE_INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 400
    assert set(index["weight_map"]) == set(weights)
    for name, file in index["weight_map"].items():
        assert (tmp_path / file).stat().st_size < 900 + 400
        assert name in load_file(tmp_path / file)
    assert len(set(index["weight_map"].values())) == 3
    assert_equal(read_published_weights(tmp_path), weights)


def test_files_can_be_read_by_others(tmp_path, weights):
    write_weights(weights, tmp_path, 10**6)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_pickle_of_tensors_is_read(tmp_path, weights):
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert_equal(read_published_weights(tmp_path), weights)


def test_pickles_in_shards_are_read(tmp_path, weights):
    names = list(weights)
    weight_map = {}
    for number, part in enumerate((names[:2], names[2:])):
        file = f"pytorch_model-{number}.bin"
        torch.save({name: weights[name] for name in part}, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_equal(read_published_weights(tmp_path), weights)


def test_safetensors_come_before_pickles(tmp_path, weights):
    write_weights(weights, tmp_path, 10**6)
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_equal(read_published_weights(tmp_path), weights)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("pytorch_model.bin", "wb") as file:
        pickle.dump({"weight": Harmful()}, file, protocol=2)
    with pytest.raises(
        UserError,
        match=r"bin cannot be read as plain tensors: .* asks for posix\.mkdir, which could run",
    ):
        read_published_weights(tmp_path)
    assert not (tmp_path / "harmed").exists()


def damage_index(folder, change):
    index = json.loads((folder / SAFE_INDEX).read_text())
    change(index)
    (folder / SAFE_INDEX).write_text(json.dumps(index))


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"has no weights: expected model\.safetensors"):
        read_published_weights(tmp_path)


def test_a_cut_file(tmp_path, weights):
    write_weights(weights, tmp_path, 10**6)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        read_published_weights(tmp_path)


def test_a_damaged_pickle(tmp_path):
    """Which need not raise what the unpickler documents."""
    file = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(b"weight", b"\xe9eight"))
    with pytest.raises(UserError, match=r"bin cannot be read as plain tensors: 'utf-8' codec"):
        read_published_weights(tmp_path)


def test_a_missing_shard(tmp_path, weights):
    write_weights(weights, tmp_path, 900)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"names model-00002-of-00003.safetensors, which is not in"):
        read_published_weights(tmp_path)


def test_a_name_that_no_shard_has(tmp_path, weights):
    write_weights(weights, tmp_path, 900)
    file = "model-00001-of-00003.safetensors"
    damage_index(tmp_path, lambda index: index["weight_map"].update(ghost=file))
    with pytest.raises(UserError, match="names ghost, which is in none of the shards"):
        read_published_weights(tmp_path)


def test_an_index_that_leads_out_of_the_folder(tmp_path, weights):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        write_weights(weights, folder, 900)
    file = "../outside/model-00001-of-00003.safetensors"
    damage_index(inside, lambda index: index["weight_map"].update(x=file))
    with pytest.raises(UserError, match=r"names \.\./outside/.*, which is not in"):
        read_published_weights(inside)


def test_an_index_of_numbers(tmp_path):
    (tmp_path / SAFE_INDEX).write_text(json.dumps({"weight_map": {"x": 5}}))
    with pytest.raises(UserError, match="names 5, which is not in"):
        read_published_weights(tmp_path)


def test_an_index_that_is_none(tmp_path):
    (tmp_path / SAFE_INDEX).write_text("[]")
    with pytest.raises(UserError, match="is not an index of weights"):
        read_published_weights(tmp_path)


def test_a_pickle_of_something_else(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="is not a table of names and tensors"):
        read_published_weights(tmp_path)


def test_cast_copies(weights):
    copies = cast(weights, "fp32")
    assert_equal(copies, weights)
    assert all(copies[name].data_ptr() != weights[name].data_ptr() for name in weights)
    assert all(w.dtype == torch.bfloat16 for w in cast(weights, "bf16").values())


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "fp32", "w has values that are not finite"),
        (1e6, "fp16", "dtype=fp16 cannot hold w: use bf16 or fp32"),
        (1.0, "fp8", "dtype=fp8 is not known"),
    ],
    ids=["not finite", "too large", "unknown"],
)
def test_weights_that_cannot_be_cast(value, dtype, message):
    with pytest.raises(UserError, match=message):
        cast({"w": torch.tensor([value])}, dtype)


def test_both_programs_compute_the_same_fingerprint(weights):
    for weight in (*weights.values(), torch.zeros(3, dtype=torch.bfloat16), torch.tensor(1.0)):
        assert fingerprint(weight) == reload.fingerprint(weight)


def test_a_fingerprint_tells_bits_shapes_and_formats_apart():
    weight = torch.zeros(2, 3)
    others = [weight.T.contiguous(), weight.half(), weight.clone(), -weight]
    others[2][1, 1] = 1e-45
    assert len({fingerprint(w) for w in (weight, *others)}) == 5
