"""One process fails or takes its time; nobody hangs, and the user is told once."""

from __future__ import annotations

import pytest
import torch

from lsp.core.errors import UserError
from lsp.parallel import collectives
from tests.distributed.spawn import run_distributed
from tests.distributed.talk import talk


def test_two_processes(tmp_path):
    first, second = run_distributed(talk, 2, tmp_path)
    assert (first["slow"], second["slow"]) == (0, 1)
    assert (first["only"], second["only"]) == ("rank 0", None)
    assert first["broadcast"] == second["broadcast"] == {"from": 0}
    assert first["sum"] == second["sum"] == [3.0, 1.0]
    assert (first["together"], second["together"]) == (0, 1)
    told, other = "raises UserError: told by rank", "leaves with 2"
    assert (first["main fails"], second["main fails"]) == (f"{told} 0", other)
    assert (first["other fails"], second["other fails"]) == (other, f"{told} 1")
    assert (first["follower fails"], second["follower fails"]) == (other, f"{told} 1")
    assert (first["all fail"], second["all fail"]) == (f"{told} 0", other)
    assert (first["data"], second["data"]) == ("raises DataError: told by rank 0", other)
    assert first["bug"].startswith("raises KeyError")
    assert second["bug"] == "leaves with 1"


def test_alone_everything_is_plain():
    def fail():
        raise UserError("told")

    assert collectives.main_process_first(lambda: 3) == 3
    assert collectives.main_process_only(lambda: 3) == 3
    assert collectives.together(lambda: 3) == 3
    assert collectives.broadcast_object(3) == 3
    assert collectives.sum_over_ranks([1.0, 2.0], torch.device("cpu")) == [1.0, 2.0]
    collectives.barrier()
    with pytest.raises(UserError, match="told"):
        collectives.together(fail)
