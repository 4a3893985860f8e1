"""Whether a run begins, continues or is refused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lsp.checkpointing.snapshot import Snapshot, read_snapshot
from lsp.checkpointing.store import CheckpointStore, DamagedError, read_state
from lsp.core.errors import UserError
from lsp.run.compose import read_yaml, to_plain
from lsp.run.config import RunConfig

FIXED = (
    "seed",
    "sequence_length",
    "tokens_per_step",
    "architecture",
    "objective",
    "data",
    "tokenizer",
    "packing",
    "optimizer.name",
    "trainer.order",
    "phases",
)
"""What a run cannot change on the way: the rest would not be the same run, or not load at all."""

BEFORE_DATA = tuple(part for part in FIXED if part != "architecture")
"""Those that are known before the data has completed the architecture."""

FREE = (
    "data.num_processes",
    "data.cache_root",
    "data.unit_bytes",
    "data.paths",
    "packing.shard_megabytes",
)
"""Parts of those that shape no token: where a corpus lies is not what it holds."""


def find_snapshot_path(config: RunConfig, store: CheckpointStore) -> Path | None:
    """The checkpoint to continue from, by `checkpoint.resume`; None for a new run.

    Raises:
        UserError: If the policy does not fit what is there.
    """
    resume = config.checkpoint.resume
    if resume == "never":
        if store.steps():
            raise UserError(
                f"checkpoint.resume=never but {store.run_dir} already holds a checkpoint at step "
                f"{store.steps()[-1]}; choose another run_name, or checkpoint.resume=auto"
            )
        return None
    path = store.latest()
    if path is None and resume == "must":
        raise UserError(
            f"checkpoint.resume=must but {store.run_dir} holds no checkpoint; check run_name and "
            "checkpoint.root, or use checkpoint.resume=auto"
        )
    return path


def adopt_before_checks(config: RunConfig) -> None:
    """`adopt_imported` as far as it can be told before checkpoints are verified.

    The checks of a configuration should see the architecture that will be trained.
    """
    store = CheckpointStore(config.run_dir)
    steps = store.steps()
    if steps:
        # A damaged checkpoint is left to the search for a whole one.
        with suppress(DamagedError):
            adopt_imported(config, store.path(steps[-1]))


def adopt_imported(config: RunConfig, step_dir: Path) -> None:
    """Takes the architecture and tokenizer of a published checkpoint that the run began from.

    They follow from the weights; the data, length and schedule are the user's.

    Raises:
        UserError: The objective is not the one that the weights were made for.
    """
    if read_state(step_dir).get("imported_from") is None:
        return
    saved = read_yaml(step_dir / "config.yaml")
    if config.objective.name != saved.objective.name:
        raise UserError(
            f"objective={config.objective.name} does not fit the imported model in "
            f"{step_dir.parent}, which was made for objective={saved.objective.name}: use that"
        )
    config.architecture = saved.architecture
    config.tokenizer = saved.tokenizer


def check_unchanged(config: RunConfig, step_dir: Path, parts: tuple[str, ...] = FIXED) -> None:
    """Compares a run's configuration with that of the checkpoint it continues from.

    Args:
        config: Completed by the run (vocabulary, positions, …), as the saved one is.
        step_dir: The checkpoint.
        parts: What is compared.

    Raises:
        UserError: If something changed that must not, with the first differences.
    """
    state = read_state(step_dir)
    if state.get("imported_from") is not None and state["step"] == 0:
        return
    before, now = (
        flat(_without_later_phases(to_plain(one), int(state.get("phase", 0))))
        for one in (read_yaml(step_dir / "config.yaml"), config)
    )
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and within(key, parts) and not within(key, FREE)
    ]
    if changed:
        shown = "; ".join(f"{key} was {before.get(key)}, now {now.get(key)}" for key in changed[:4])
        more = f" (and {len(changed) - 4} more)" if len(changed) > 4 else ""
        raise UserError(
            f"run_name={config.run_name} is at step {state['step']} with another configuration: "
            f"{shown}{more}.\nGive the values it began with, or another run_name for a new run"
        )


def _without_later_phases(plain: dict[str, Any], number: int) -> dict[str, Any]:
    """A configuration without what is still to come: the end of a phase, and those after it."""
    begun = [dict(phase) for phase in plain["phases"][: number + 1]]
    for phase in begun[number:]:
        del phase["steps"]
    return plain | {"phases": begun}


def load_snapshot(step_dir: Path, data_digest: str | None) -> Snapshot:
    """Reads a checkpoint and checks that it belongs to the data.

    Args:
        step_dir: The checkpoint.
        data_digest: Of the rows; None where a new phase begins in others.

    Raises:
        UserError: If the prepared data is not what the run was trained on.
    """
    snapshot = read_snapshot(step_dir)
    known = snapshot.state.data_digest
    if known and data_digest is not None and known != data_digest and snapshot.state.step > 0:
        raise UserError(
            f"the data changed since {step_dir.name} was saved (digest of its rows {known[:12]}, "
            f"now {data_digest[:12]}): its cursor would point elsewhere. Restore the source "
            "files, or choose another run_name"
        )
    return snapshot


def within(key: str, parts: tuple[str, ...]) -> bool:
    """Whether a key such as `data.paths` is one of the parts, or inside one."""
    return any(key == part or key.startswith(part + ".") for part in parts)


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested containers as one, with keys such as `data.paths`."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
