"""Opening a run for use: evaluation, generation, export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lsp.checkpointing.store import CheckpointStore, read_state, read_weights
from lsp.core.errors import UserError
from lsp.models.interface import LanguageModel
from lsp.run.compose import read_yaml
from lsp.run.config import RunConfig
from lsp.run.parts import build_model, load_weights


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with everything around it.

    Attributes:
        config: The run's completed configuration.
        model: In evaluation mode, fp32, on the host.
        tokenizer_path: Folder that `AutoTokenizer` loads.
        step: Optimizer steps behind the weights.
        step_dir: The checkpoint.
        run_dir: Folder of the run.
        state: Plain values of the checkpoint.
    """

    config: RunConfig
    model: LanguageModel
    tokenizer_path: Path
    step: int
    step_dir: Path
    run_dir: Path
    state: dict[str, object]


def load_run(run: str | Path, checkpoint: str = "latest") -> LoadedRun:
    """Reads a checkpoint of a run.

    Args:
        run: Folder of the run.
        checkpoint: `latest`, `best` or the number of a step.

    Raises:
        UserError: If the folder is not a run or has no such checkpoint.
    """
    run_dir = Path(run)
    if not run_dir.is_dir():
        raise UserError(f"run={run} is not a folder; runs lie in checkpoints/<run_name>")
    step_dir = CheckpointStore(run_dir).find(checkpoint)
    config = read_yaml(step_dir / "config.yaml")
    model = build_model(config)
    load_weights(model, read_weights(step_dir), step_dir)
    model.eval()
    state = read_state(step_dir)
    return LoadedRun(
        config=config,
        model=model,
        tokenizer_path=run_dir / "tokenizer",
        step=int(state["step"]),
        step_dir=step_dir,
        run_dir=run_dir,
        state=state,
    )
