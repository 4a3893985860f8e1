"""`lsp consolidate`: the weights of a checkpoint in one file."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError

from lsp.checkpointing.files import record, save_tensors
from lsp.checkpointing.store import CheckpointStore, read_weights
from lsp.core.errors import UserError, require
from lsp.core.exit_codes import DONE
from lsp.run.config import ConsolidateConfig


def run_consolidate(config: ConsolidateConfig) -> int:
    """Writes one safetensors file; returns the exit code.

    The tensors go from file to file: they are mapped into memory, never copied there.

    Raises:
        UserError: The run has no such checkpoint, or `out` cannot be written.
    """
    out = config.file
    require(
        not out.is_dir(),
        f"out={out} is a folder; name a file in it, e.g. out={out / 'model'}.safetensors",
    )
    require(
        config.overwrite or not out.exists(),
        f"out={out} exists: name another file, or overwrite=true",
    )
    store = CheckpointStore(Path(config.run))
    step_dir = store.find(config.checkpoint)
    weights = dict(read_weights(step_dir))
    aside = out.with_name(f".{out.name}.aside")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": "pt", "step": str(store.step_of(step_dir))}
        save_tensors(weights, aside, metadata)
        written = record(aside)
        os.replace(aside, out)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"out={out} cannot be written: {reason}") from error
    numbers = sum(weight.numel() for weight in weights.values())
    print(f"wrote {out}: {len(weights)} tensors of {step_dir}, {numbers:,} numbers")
    print(f"  {written['bytes']:,} bytes, blake2b {written['blake2b']}")
    print(f"read it with safetensors.torch.load_file({str(out)!r})")
    return DONE
