"""A model with a second loss, of pairs of texts, under sharding."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.spawn import run_distributed
from tests.distributed.work import Job, train


@pytest.mark.parametrize("strategy", ["zero3", pytest.param("ddp", marks=pytest.mark.slow)])
def test_equals_one_process(tmp_path, strategy):
    values = {"architecture": "nezha, pairs", "residual": "recomputed"}
    (expected,) = train([Job(**values)])
    values |= {"strategy": strategy}
    jobs = [Job(**values), Job(**values | {"residual": "stored"}, accumulation=2)]
    # A softmax does not see the bias of keys: its gradient is rounding, of which Adam makes steps.
    weights = {name: x for name, x in expected.weights.items() if not name.endswith("key.bias")}
    for process in run_distributed(train, 2, tmp_path, jobs):
        for found in process:
            assert found.losses == pytest.approx(expected.losses, rel=1e-5)
            for name, value in weights.items():
                torch.testing.assert_close(found.weights[name], value, rtol=0, atol=1e-4)
