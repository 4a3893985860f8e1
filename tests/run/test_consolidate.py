"""One file of weights, whatever number of processes wrote the checkpoint, in little memory."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lsp.checkpointing.files import save_tensors, shards
from lsp.checkpointing.store import CheckpointStore, write_state
from lsp.cli.main import main
from lsp.core.exit_codes import DONE, USER_ERROR
from tests.processes import Session

MEGABYTE = 2**20
MODEL_MEGABYTES = 128


def write_run(folder: Path, tensors: dict[str, torch.Tensor], world_size: int = 3) -> Path:
    """A run at step 7, as so many processes write it."""
    store = CheckpointStore(folder)
    aside = store.begin(7)
    for rank in range(world_size):
        for name, shard in shards("model", tensors.items(), rank, world_size):
            save_tensors(shard, aside / name)
    write_state(aside, {"step": 7})
    store.commit(aside, 7)
    (folder / "config.yaml").touch()
    return folder


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    table = torch.randn(30, 4)
    return {"table": table, "head": table, "norm.weight": torch.ones(5), "scale": torch.tensor(2.0)}


def test_every_tensor_in_one_file(tmp_path, tensors, monkeypatch, capsys):
    monkeypatch.setattr("lsp.checkpointing.files.SHARD_BYTES", 300)
    run, out = write_run(tmp_path / "run", tensors), tmp_path / "new" / "model.safetensors"
    assert len(list(run.glob("step-*/model-*.safetensors"))) == 3
    assert main(["consolidate", f"run={run}", f"out={out}"]) == DONE
    found = load_file(out)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert "4 tensors of" in capsys.readouterr().out


def test_refusals(tmp_path, tensors, monkeypatch, capsys):
    run = write_run(tmp_path / "run", tensors)
    monkeypatch.chdir(tmp_path)
    assert main(["consolidate", f"run={run}"]) == DONE
    assert (tmp_path / "run.safetensors").is_file()
    for words, told in (
        ([], "out=run.safetensors exists: name another file, or overwrite=true"),
        ([f"out={run}"], f"out={run} is a folder; name a file in it"),
        (["out=/proc/model.safetensors"], "out=/proc/model.safetensors cannot be written: "),
        (["checkpoint=3", "out=new"], "checkpoint=3 is not in"),
    ):
        capsys.readouterr()
        assert main(["consolidate", f"run={run}", *words]) == USER_ERROR
        assert told in capsys.readouterr().err
    assert main(["consolidate", f"run={run}", "overwrite=true"]) == DONE


def limit_memory(more: int) -> None:
    """Allows a process so many more bytes than it has; files mapped for reading alone are free."""
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmData"))
    limit = int(kilobytes) * 1024 + more
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def test_no_second_copy_in_memory(tmp_path):
    """In a process that has memory for the model once and a half."""
    size = MODEL_MEGABYTES * MEGABYTE // 16
    tensors = {f"layer-{n}": torch.full((size // 4,), float(n)) for n in range(16)}
    run, out = write_run(tmp_path / "run", tensors), tmp_path / "model.safetensors"
    del tensors
    more = int(1.5 * MODEL_MEGABYTES * MEGABYTE)
    before = partial(limit_memory, more)
    session = Session(["consolidate", f"run={run}", f"out={out}"], tmp_path / "log", before)
    assert session.wait() == DONE, session.output
    with safe_open(out, framework="pt") as file:
        assert all(file.get_tensor(f"layer-{n}")[-1] == n for n in range(16))
