"""DeepSpeed's CPU optimizer: what it needs, and that it computes what torch's AdamW does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lsp.core.errors import UserError
from lsp.parallel import offload
from lsp.parallel.config import OffloadConfig, ParallelismConfig
from lsp.parallel.offload import check_offload, cpu_adam, load_extensions
from lsp.training.config import AdamWConfig
from lsp.training.optimizers import PEAK, build_optimizers, set_learning_rate

OFFLOAD = ParallelismConfig(strategy="zero2_offload")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("tool", ["c++", "ninja"])
def test_a_missing_tool_is_named(tool, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(offload, "_find_own_tools", lambda: None)
    monkeypatch.setattr("shutil.which", lambda name: None if name == tool else f"/usr/bin/{name}")
    with pytest.raises(UserError, match=rf"parallelism=zero2_offload .*no .*{tool[0]}"):
        check_offload(OFFLOAD)
    check_offload(ParallelismConfig(strategy="zero2"))
    check_offload(ParallelismConfig(strategy="auto"))


def test_ninja_of_the_environment_is_found(monkeypatch, tmp_path):
    (tmp_path / "ninja").touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    offload._find_own_tools()
    assert offload.shutil.which("ninja") == str(tmp_path / "ninja")


def test_libaio_is_asked_for(monkeypatch, tmp_path):
    nvme = ParallelismConfig(strategy="zero3_nvme", offload=OffloadConfig(nvme_path=str(tmp_path)))
    monkeypatch.setattr(offload, "_missing_tools", list)
    monkeypatch.setattr("deepspeed.ops.op_builder.AsyncIOBuilder.is_compatible", lambda _: False)
    with pytest.raises(UserError, match=r"needs libaio.*use parallelism=zero3_offload"):
        check_offload(nvme)
    monkeypatch.setattr("deepspeed.ops.op_builder.AsyncIOBuilder.is_compatible", lambda _: True)
    check_offload(nvme)


def test_what_does_not_compile_is_told(folder, monkeypatch):
    def load(self: object, verbose: bool) -> None:
        raise RuntimeError("Error building extension\nfatal error: omp.h")

    monkeypatch.setattr("deepspeed.ops.op_builder.CPUAdamBuilder.load", load)
    with pytest.raises(UserError, match=rf"cpu_adam does not compile.*{folder}.*omp\.h"):
        load_extensions(OFFLOAD)


def test_the_lock_of_a_killed_process_is_removed(folder, monkeypatch):
    (folder / "cpu_adam").mkdir()
    left = folder / "cpu_adam" / "lock"
    left.touch()
    monkeypatch.setattr(
        "deepspeed.ops.op_builder.CPUAdamBuilder.load", lambda self, verbose: left.exists()
    )
    load_extensions(OFFLOAD)
    assert not left.exists()


def test_a_folder_that_cannot_be_written_is_told(folder, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/proc/extensions")
    with pytest.raises(UserError, match="TORCH_EXTENSIONS_DIR=/proc/extensions"):
        load_extensions(OFFLOAD)


def test_each_process_has_a_folder_of_its_own_on_the_disk(tmp_path):
    parallelism = ParallelismConfig("zero3_nvme", offload=OffloadConfig(nvme_path=str(tmp_path)))
    (tmp_path / "lsp-killed.lock").touch()
    (tmp_path / "lsp-killed").mkdir()
    (tmp_path / "mine").mkdir()
    folders = [Path(str(offload.own_folder(parallelism).offload.nvme_path)) for _ in range(2)]
    assert folders[0] != folders[1]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "mine",
        *(folder.name for folder in folders),
    }
    assert offload.own_folder(OFFLOAD) is OFFLOAD


def test_buffers_hold_the_largest_weight(tmp_path):
    nvme = OffloadConfig(nvme_path=str(tmp_path), buffer_size=203)
    parallelism = ParallelismConfig("zero3_nvme", offload=nvme)
    with pytest.raises(UserError, match=r"buffer_size=203 is below the 204 .* use 204 or more"):
        offload.check_buffers(parallelism, Two(), world_size=2)
    offload.check_buffers(parallelism, Two(), world_size=3)
    offload.check_buffers(OFFLOAD, Two(), world_size=1)


class Two(torch.nn.Module):
    """A matrix, which decays, and a vector, which does not."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.nn.Parameter(torch.randn(37, 11, generator=generator))
        self.vector = torch.nn.Parameter(torch.randn(23, generator=generator))


def test_equals_adamw():
    load_extensions(OFFLOAD)
    ours, theirs = Two(), Two()
    config = AdamWConfig(learning_rate=0.1, weight_decay=0.3, beta1=0.8, beta2=0.95, epsilon=1e-3)
    (expected,) = build_optimizers(theirs, config)
    found = cpu_adam(build_optimizers(ours, config)[0])
    assert [group[PEAK] for group in found.param_groups] == [0.1, 0.1]
    assert [group["weight_decay"] for group in found.param_groups] == [0.3, 0.0]
    for step in range(50):
        for model, optimizer in ((ours, found), (theirs, expected)):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            set_learning_rate(optimizer.param_groups, 1 - step / 100)
            optimizer.step()
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(dict(ours.named_parameters())[name], value, rtol=0, atol=2e-6)


def test_resumed_is_bit_equal():
    """The extension's own powers of beta differ by their rounding after a resume."""
    load_extensions(OFFLOAD)
    results = []
    for resumed in (False, True):
        model = Two()
        optimizer = cpu_adam(build_optimizers(model, AdamWConfig())[0])
        for step in range(40):
            if resumed and step == 20:
                state = optimizer.state_dict()
                optimizer = cpu_adam(build_optimizers(model, AdamWConfig())[0])
                optimizer.load_state_dict(state)
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.1 + step)
            optimizer.step()
        results.append(model)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in results), strict=True))
