"""What all processes of a run have to agree on before the first step."""

from __future__ import annotations

from lsp.checkpointing.snapshot import TrainState
from lsp.core.versions import source_digest, versions
from lsp.data.batches import Share
from lsp.models.interface import LanguageModel
from lsp.parallel.agreement import agree, check_shared
from lsp.parallel.runtime import Runtime
from lsp.run.compose import to_plain
from lsp.run.config import RunConfig
from lsp.run.resume import FREE, flat, within

LOCAL = (*FREE, "checkpoint.root", "tracking")
"""Parts of a configuration that may differ between hosts: where things lie there (that the folder
of runs is the same, and the data, is checked by content), and what only rank 0 uses."""


def agree_on_start(config: RunConfig, place: Runtime) -> None:
    """Configuration, code and packages; before anything heavy, and before the next collective.

    Raises:
        UserError: If they differ between processes.
    """
    if place.world_size == 1:  # the sources are not read for nobody to compare with
        return
    facts = {k: v for k, v in flat(to_plain(config)).items() if not within(k, LOCAL)}
    facts |= {f"version of {name}": version for name, version in versions().items()}
    agree(facts | {"digest of lsp's sources": source_digest(), "device": place.device.type})


def agree_on_folder(config: RunConfig) -> None:
    """The folder of the run, from which every process resumes and into which each writes.

    Raises:
        UserError: If it is another folder on some host.
    """
    check_shared(config.run_dir, "checkpoint.root")


def agree_on_steps(
    config: RunConfig, share: Share, state: TrainState, evaluation_batches: int
) -> None:
    """The steps that are about to be made, and from where; before the model is shared out.

    Args:
        config: Of the run, completed.
        share: Of this process.
        state: Where the run stands.
        evaluation_batches: Of this process, in one evaluation.

    Raises:
        UserError: If any of it differs between processes.
    """
    facts = {
        "rows of a step": share.rows_per_step,
        "rows of a micro-batch": share.micro_batch,
        "micro-batches of a step": share.accumulation,
        "last step": config.trainer.max_steps,
        "step of the checkpoint": state.step,
        "cursor": state.cursor,
        "digest of the data": state.data_digest,
        "batches of an evaluation": evaluation_batches,
    }
    # What the data and an imported checkpoint have completed.
    completed = flat(to_plain(config)).items()
    agree(facts | {key: value for key, value in completed if within(key, ("architecture",))})


def agree_on_plan(model: LanguageModel, rows: int, length: int) -> None:
    """In how many pieces each part of the model computes: each piece may gather weights.

    Args:
        model: Where it will run.
        rows: Of a micro-batch.
        length: Positions of a row that this process holds.

    Raises:
        UserError: If it differs between processes.
    """
    plan = model.execution_plan(rows, length)
    agree({f"pieces of {part}": count for part, count in plan.items()})
