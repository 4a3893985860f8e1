"""Training in phases: each goes on with the weights of the one before, on rows of its own length.

As in the Longformer paper (2004.05150, section 4.2): what is near is learnt first, on short rows
with small windows, then what is far. A phase is a session of the run like one after an
interruption: it begins from the checkpoint that ends the phase before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.prepare import PreparedData
from lsp.checkpointing.snapshot import TrainState
from lsp.checkpointing.store import read_state
from lsp.core.errors import UserError, require
from lsp.run.config import RunConfig
from lsp.training.config import MuonConfig


@dataclass
class Session:
    """What is trained without a break: a run, or the rest of one of its phases.

    Attributes:
        config: Of the run.
        number: Of the phase.
        step_dir: Checkpoint that it goes on from; None for the beginning.
        state: Where the phase before stands, if it was trained just now.
        prepared: Its data, once that is there.
        now: Configuration of the phase, completed on the way.
    """

    config: RunConfig
    number: int
    step_dir: Path | None
    state: TrainState | None = None
    prepared: PreparedData | None = None

    def __post_init__(self) -> None:
        self.now = of_phase(self.config, self.number)

    @property
    def is_last(self) -> bool:
        """Whether the run is done with it."""
        return self.number + 1 == count(self.config)

    @property
    def saved(self) -> RunConfig:
        """The configuration of the phase that the checkpoint is of: this, or the one before."""
        assert self.step_dir is not None
        number = int(read_state(self.step_dir).get("phase", 0))
        return self.now if number == self.number else of_phase(self.config, self.number - 1)


def of_phase(config: RunConfig, number: int) -> RunConfig:
    """The configuration of one phase, as if it were a run; a copy.

    Args:
        config: Of the whole run.
        number: The first is 0.

    Raises:
        UserError: The architecture has no window to be set.
    """
    now = copy.deepcopy(config)
    if not config.phases:
        return now
    phase = config.phases[number]
    now.phase = number
    now.sequence_length = phase.sequence_length
    now.tokens_per_step = phase.tokens_per_step or config.tokens_per_step
    now.trainer.max_steps = config.end_of_phase(number)
    now.optimizer.learning_rate *= phase.learning_rate
    if isinstance(now.optimizer, MuonConfig):
        now.optimizer.adamw_learning_rate *= phase.learning_rate
    if phase.warmup_steps is not None:
        now.schedule.warmup_steps = phase.warmup_steps
    if phase.attention_window is not None:
        require(
            hasattr(now.architecture, "attention_window"),
            f"attention_window={phase.attention_window} is for architecture=longformer: leave it "
            "out",
        )
        now.architecture.attention_window = copy.deepcopy(phase.attention_window)
    return now


def each_phase(config: RunConfig) -> list[RunConfig]:
    """The configurations of all phases, in order; of a run without phases, its own."""
    if not config.phases:
        return [config]
    return [of_phase(config, number) for number in range(count(config))]


def check_each(config: RunConfig, check: Callable[[RunConfig], None]) -> None:
    """Checks the configuration of every phase.

    Raises:
        UserError: What the check raised, and of which phase.
    """
    if not config.phases:
        check(config)
        return
    for number in range(count(config)):
        try:
            check(of_phase(config, number))
        except UserError as error:
            raise UserError(f"phases[{number}]: {error}") from error


def longest_before(config: RunConfig, number: int) -> int:
    """Positions of the longest row of the phases before one."""
    return max(phase.sequence_length for phase in config.phases[:number])


def count(config: RunConfig) -> int:
    """How many sessions an uninterrupted run has."""
    return max(1, len(config.phases))


def reached(config: RunConfig, step_dir: Path | None) -> int:
    """The phase that a run goes on with from a checkpoint: the last one, where it is done.

    A checkpoint whose evaluation is still to be made belongs to the phase that it ends.
    """
    if step_dir is None or not config.phases:
        return 0
    state = read_state(step_dir)
    if state.get("unlogged") is not None:
        return min(int(state.get("phase", 0)), count(config) - 1)
    numbers = range(count(config))
    ahead = (n for n in numbers if int(state["step"]) < config.end_of_phase(n))
    return next(ahead, numbers[-1])


def check_same_tokenizer(first: Path, now: Path) -> None:
    """A vocabulary is learnt for each length of rows, and has to come out the same.

    Args:
        first: Folder of the run's tokenizer.
        now: Folder of that of the phase.

    Raises:
        UserError: It did not.
    """
    vocabularies = [folder / "tokenizer.json" for folder in (first, now)]
    contents = [path.read_bytes() if path.exists() else b"" for path in vocabularies]
    if contents[0] != contents[1]:
        raise UserError(
            f"the vocabulary in {now} is not that of the phases before, in {first}: use "
            f"tokenizer=pretrained tokenizer.name={now} from the first phase on"
        )
