"""A micro-batch that leaves no trace, to find out whether the steps that follow can be made."""

from __future__ import annotations

from typing import Any

import torch

from lsp.parallel.agreement import agree
from lsp.parallel.engine import Engine, Tensors


def dry_run(engine: Engine, batch: Tensors, reserve: int = 0) -> None:
    """Runs a micro-batch whose gradients are exactly zero; every process must call it.

    Afterwards all processes compare how many collectives that took: in steps of different numbers
    of them they would wait for each other for ever, or take each other's results for their own.

    Args:
        engine: Whose next real micro-batch begins a step.
        batch: Of the size of every micro-batch, on the device.
        reserve: Bytes that are occupied meanwhile, because later steps will have them in use.

    Raises:
        UserError: On rank 0, if the processes made different numbers of collectives.
    """
    before = _collectives()
    occupied = torch.empty(reserve, dtype=torch.uint8, device=engine.runtime.device)
    # Not the last of a step: nothing is reduced yet, and the zeros are added to.
    engine.forward_backward(batch, 0.0, last=False)
    del occupied
    agree({"collectives of a micro-batch": _collectives() - before})


def _collectives() -> int:
    """How many this process has entered, in all its groups."""
    if not torch.distributed.is_initialized():
        return 0
    groups: Any = torch.distributed.distributed_c10d._world.pg_map
    return sum(int(group._get_sequence_number_for_group()) for group in groups)
