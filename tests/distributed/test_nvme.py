"""Weights and optimizer state on a disk: the run of one process, and a resume without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lsp.core.errors import UserError
from lsp.parallel.config import OffloadConfig, ParallelismConfig
from lsp.parallel.offload import check_offload, own_folder
from tests.distributed import work
from tests.distributed.spawn import run_distributed
from tests.distributed.work import Job, Outcome


def train(jobs: list[Job], disk: str, *, weights: bool) -> list[Outcome]:
    """Trains a model whose partitions are large enough (1 MiB) for DeepSpeed to write them."""
    offload = OffloadConfig(
        nvme_path=disk, weights=weights, buffer_size=600_000, max_in_cpu=0, pipeline_write=True
    )

    def parallelism(strategy: str, **values) -> ParallelismConfig:
        if strategy != "zero3_nvme":
            return ParallelismConfig(strategy, **values)
        return ParallelismConfig(strategy, offload=offload, **values)

    with pytest.MonkeyPatch.context() as patch:
        small = work.reformer
        patch.setattr(work, "ParallelismConfig", parallelism)
        patch.setattr(work, "reformer", lambda *a, **k: small(*a, **k, feed_forward_size=20_000))
        return work.train(jobs)


def written(disk: Path) -> int:
    """Bytes of files that are still there."""
    return sum(path.stat().st_size for path in disk.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "precision"), [(False, "fp32"), (True, "bf16")])
def test_equals_host_memory(tmp_path, weights, precision):
    disk = tmp_path / "disk"
    disk.mkdir()
    parallelism = ParallelismConfig("zero3_nvme", offload=OffloadConfig(nvme_path=str(disk)))
    try:
        check_offload(parallelism)
    except UserError as error:
        pytest.skip(str(error))
    saved = str(tmp_path / "saved")
    jobs = [
        Job("zero3_offload", last=6, precision=precision),
        Job("zero3_nvme", last=6, precision=precision),
        Job("zero3_nvme", last=3, precision=precision, save=saved),
        Job("zero3_nvme", first=3, last=6, precision=precision, load=saved),
    ]
    host, whole, _, again = run_distributed(_train, 2, tmp_path, jobs, str(disk), weights)[0]
    assert whole.losses == host.losses
    assert again.losses == whole.losses[3:]
    for name, value in host.weights.items():
        assert torch.equal(whole.weights[name], value)
        assert torch.equal(again.weights[name], value)
    for name, value in host.optimizer.items():
        assert torch.equal(whole.optimizer[name], value)
        assert torch.equal(again.optimizer[name], value)
    # The processes of this test end without a word; whoever comes next removes what they left.
    assert written(disk) > 2**20
    own_folder(parallelism)
    assert written(disk) == 0


def _train(jobs: list[Job], disk: str, weights: bool) -> list[Outcome]:
    outcomes = train(jobs, disk, weights=weights)
    assert written(Path(disk)) > 2**20
    return outcomes
