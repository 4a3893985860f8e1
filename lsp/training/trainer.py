"""The training loop: fetch, step, callbacks, save."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch

from lsp.checkpointing.config import CheckpointConfig
from lsp.checkpointing.saver import Saver
from lsp.checkpointing.snapshot import TrainState
from lsp.checkpointing.store import CheckpointStore
from lsp.core.batch import Batch
from lsp.core.exit_codes import DIVERGED, DONE, INTERRUPTED
from lsp.core.seeding import stream
from lsp.data.batches import EvaluationBatches, TrainingBatches
from lsp.models.interface import LanguageModel
from lsp.parallel.collectives import on_any_rank, sum_over_ranks
from lsp.parallel.engine import Engine, StepResult
from lsp.parallel.rehearsal import dry_run
from lsp.parallel.watchdog import Watchdog
from lsp.tracking.tracker import Tracker
from lsp.training.config import ScheduleConfig, TrainerConfig
from lsp.training.console import TrainingConsole
from lsp.training.evaluation import Evaluation, evaluate
from lsp.training.lanes import Lanes, Memory, size_of
from lsp.training.optimizers import set_learning_rate
from lsp.training.schedule import learning_rate_fraction
from lsp.training.signals import StopRequest
from lsp.training.throughput import peak_memory_bytes

MODEL_STREAM = 4


class EvaluationStoppedError(Exception):
    """A signal arrived during an evaluation; the next session begins it again."""


@dataclass
class Trainer:
    """Trains a prepared engine from where `state` stands to `settings.max_steps`.

    Attributes:
        engine: The model and its optimizers under a parallelism strategy.
        batches: Micro-batches of a step, for this process.
        validation: Rows for evaluation; None where the data has none.
        bytes_per_token: Of the training and of the validation split.
        settings: The loop.
        schedule: Learning rate over the steps.
        checkpoints: Where snapshots go.
        checkpoint_config: When, and which are kept.
        config_yaml: The resolved configuration, saved with each snapshot.
        state: Where the run stands; changed in place.
        seed: Of the run.
        trackers: Receive metrics; empty on all but the main process.
        console: Talks to the person.
        stop: Whether a signal arrived.
        peak_flops: Of all devices together, in FLOP/s; None where unknown.
        watchdog: Told what is done, in case it is not.
        first_step_bytes: What the optimizers allocate on the device at their first step.
        memory: What the model remembered of this process's lanes where `state` stands.
        first_step: Step at which the schedule begins: that of the phase.
        phase: Number of the phase, for the log; None where the run has none.
    """

    engine: Engine
    batches: TrainingBatches
    validation: EvaluationBatches | None
    bytes_per_token: tuple[float, float]
    settings: TrainerConfig
    schedule: ScheduleConfig
    checkpoints: CheckpointStore
    checkpoint_config: CheckpointConfig
    config_yaml: str
    state: TrainState
    seed: int
    trackers: list[Tracker]
    console: TrainingConsole
    stop: StopRequest
    peak_flops: float | None = None
    watchdog: Watchdog = field(default_factory=Watchdog)
    first_step_bytes: int = 0
    memory: Memory | None = None
    first_step: int = 0
    phase: int | None = None

    def __post_init__(self) -> None:
        self.clock, self.interval = time.perf_counter(), 0.0
        self.interval_tokens = self.state.tokens
        self.saved_step = self.state.step or None
        self.measuring = False
        self.lanes = Lanes(self.batches.share, self.memory, self.engine.runtime.device)
        self.memory = None  # the lanes have it, and let go of it
        config = self.checkpoint_config
        self.saver = Saver(self.checkpoints, self.engine, config, self.console.say)
        self.save_stall: float | None = None

    def fit(self) -> int:
        """Trains to the end, to a signal or to divergence; returns the exit code."""
        state, settings = self.state, self.settings
        self.clock = time.perf_counter()
        self.console.start()
        with self.stop.deferred(), self.saver.attended():
            self.rehearse()
            if state.unlogged is not None:
                self.evaluate_and_log()
            while state.step < settings.max_steps and state.unlogged is None:
                self.at("fetching the rows")
                micro_batches = self.batches.fetch(state.cursor)
                result, stopping = self.train_step(micro_batches)
                if result is None:
                    return self.interrupted()
                self.after_step(result)
                if state.nonfinite_in_a_row >= settings.max_nonfinite:
                    return self.diverged(result)
                if stopping and state.step < settings.max_steps:
                    return self.interrupted()
            if state.unlogged is not None:
                return self.interrupted()
            self.save(wait=True)
        return DONE

    def rehearse(self) -> None:
        """Computes a micro-batch as the steps will, with all that they hold, and for nothing."""
        if not self.settings.dry_run or self.state.step >= self.settings.max_steps:
            return
        self.watchdog.phase("dry run before the first step")
        self.engine.module.train()
        batch = self.batches.fetch(self.state.cursor)[0].to(self.engine.runtime.device)
        memory, most = self.lanes[0], -1
        while most < (size := size_of(memory)):  # until it remembers as much as it ever will
            self.model.recall(memory)
            self.model.begin_micro_batch(0)
            dry_run(self.engine, batch.tensors(), self.first_step_bytes)
            memory, most = self.model.remembered(), size
        self.clock = time.perf_counter()  # rehearsing is not training

    def train_step(self, micro_batches: list[Batch]) -> tuple[StepResult | None, bool]:
        """One optimizer step; returns its result and whether any process was asked to stop.

        A step of several micro-batches may take long: a request to stop abandons it between two
        of them, and the result is None. Nothing is lost, as only `engine.step` changes weights.
        """
        device, world = self.engine.runtime.device, self.engine.runtime.world_size
        self.engine.module.train()
        self.measure_drift()
        # The loss of the step is one average over all predicted tokens of all processes and
        # micro-batches, so their number has to be known before the first backward pass.
        predicted = float(sum(int(batch.num_predicted) for batch in micro_batches))
        padding = float(sum(int(batch.num_padding) for batch in micro_batches))
        self.at("counting the tokens")
        count, padding, asked = sum_over_ranks([predicted, padding, self.asked], device)
        if asked:
            return None, True
        scale = world / max(count, 1.0)
        seed, share = self.model_seed(), self.batches.share
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        for index, batch in enumerate(micro_batches):
            if index and on_any_rank(self.asked):
                return None, True
            last = index == len(micro_batches) - 1
            tensors = batch.to(device).tensors()
            row = share.lanes[index * share.micro_batch]
            first_sample = self.state.cursor + row
            self.at(
                f"forward and backward of micro-batch {index + 1} of {len(micro_batches)}",
                range(first_sample, first_sample + share.micro_batch),
            )
            self.model.recall(self.lanes[index])
            self.model.begin_micro_batch(seed, row)
            loss_sum += self.engine.forward_backward(tensors, scale, last=last).double()
            self.lanes.keep(index, self.model.remembered())
        begin, end = self.first_step, self.settings.max_steps
        fraction = learning_rate_fraction(self.state.step - begin, self.schedule, end - begin)
        self.learning_rate = set_learning_rate(self.engine.param_groups, fraction)
        # Read before the update is queued, so that a GPU updates while the host goes on.
        self.at("adding up the loss")
        told = [float(loss_sum), self.asked, self.saver.failed, not self.lanes.finite]
        total, asked, failed, poisoned = sum_over_ranks(told, device)
        if failed:
            self.saver.finish()  # raises, on every process
        self.at("updating the weights")
        result = self.engine.step()
        length = micro_batches[0].input_ids.shape[1] * share.sequence_degree
        self.advance(result, length, total, count, padding)
        self.move_on(poisoned > 0)
        return result, asked > 0

    def move_on(self, poisoned: bool) -> None:
        """Lets the lanes remember the step that is done, if their next rows go on from it.

        A memory that is not finite would make every later step so: then all lanes forget theirs,
        on all processes alike, whatever the number of those is. Of a step that was skipped for
        its gradients alone the memory is good.
        """
        if poisoned:
            self.console.say(
                f"lsp: step {self.state.step}: what the model remembered was not finite; its "
                "memory begins anew"
            )
        goes_on = self.batches.order.goes_on(self.state.cursor)
        self.lanes.move_on(remember=goes_on and not poisoned)

    def at(self, doing: str, samples: range | None = None) -> None:
        """Tells the watchdog what comes now."""
        self.watchdog.phase(f"step {self.state.step + 1}: {doing}", samples)

    @property
    def asked(self) -> bool:
        """Whether a signal asked this process to stop."""
        return self.stop.signal is not None

    def model_seed(self) -> int:
        """Seed of what is random inside the model: a function of (seed, step) alone."""
        return int(stream(self.seed, MODEL_STREAM, self.state.step).integers(2**62))

    def measure_drift(self) -> None:
        """Asks for a measurement at some steps: comparing costs little, reading it a sync."""
        every = self.settings.drift_every
        self.measuring = bool(every) and (self.state.step + 1) % every == 0
        self.model.measure_drift(self.measuring)

    @property
    def model(self) -> LanguageModel:
        module = self.engine.module
        assert isinstance(module, LanguageModel)
        return module

    def advance(
        self, result: StepResult, length: int, loss_sum: float, count: float, padding: float
    ) -> None:
        """Moves the state past a step, applied or skipped.

        Args:
            result: What became of the step.
            length: Positions in a row.
            loss_sum: Of the whole step, over all processes; as `count` and `padding`.
            count: Predicted positions.
            padding: Positions that are padding.
        """
        state, rows = self.state, self.batches.share.rows_per_step
        state.step += 1
        state.cursor += rows
        state.tokens += rows * length
        self.row_length = length
        finite = result.applied and math.isfinite(loss_sum)
        state.nonfinite += not finite
        state.nonfinite_in_a_row = 0 if finite else state.nonfinite_in_a_row + 1
        sums = {"padding": padding, "positions": float(rows * length)}
        if math.isfinite(loss_sum):
            sums |= {"loss": loss_sum, "count": count}
        for key, value in sums.items():
            state.pending[key] = state.pending.get(key, 0.0) + value
        drift = self.model.reversible_drift() if self.measuring else None
        if drift is not None:
            state.pending["drift"] = drift

    def after_step(self, result: StepResult) -> None:
        """What happens at some steps: log, evaluate, save."""
        step, settings = self.state.step, self.settings
        final = step == settings.max_steps
        self.state.unlogged = {}
        if final or step % settings.log_every == 0:
            self.state.unlogged = self.measure(result)
            self.console.metrics(step, self.state.unlogged)
        self.evaluate_and_log()
        if self.state.unlogged is not None:
            return
        self.console.step(step)
        every = self.checkpoint_config.every
        if every and step % every == 0 and not final:
            self.save()

    def evaluate_and_log(self) -> None:
        """Completes the row of this step, or leaves that to the next session if a signal comes."""
        state, every = self.state, self.settings.eval_every
        row = state.unlogged or {}
        due = state.step == self.settings.max_steps or (every and state.step % every == 0)
        if self.validation is not None and due:
            try:
                row |= self.evaluate()
            except EvaluationStoppedError:
                return
        state.unlogged = None
        if row:
            row |= {} if self.phase is None else {"phase": self.phase}
            for tracker in self.trackers:
                tracker.log(state.step, row)

    def measure(self, result: StepResult) -> dict[str, float | int | None]:
        """The figures of the steps since the last logged one."""
        state = self.state
        self.lap()
        speed = (state.tokens - self.interval_tokens) / self.interval
        self.interval, self.interval_tokens = 0.0, state.tokens
        memory = peak_memory_bytes(self.engine.runtime.device)
        state.peak_memory_bytes = max(state.peak_memory_bytes, memory)
        sums, state.pending = state.pending, {}
        save_stall, self.save_stall = self.save_stall, None
        loss = sums["loss"] / max(sums["count"], 1.0) if "loss" in sums else None
        flops = self.model.flops_per_token(self.row_length) * speed
        causal = self.batches.maker.config.name == "causal"
        return {
            "tokens": state.tokens,
            "loss": loss,
            "bits_per_byte": loss / math.log(2) / self.bytes_per_token[0]
            if causal and loss is not None
            else None,
            "learning_rate": self.learning_rate,
            "gradient_norm": result.gradient_norm if result.applied else None,
            "tokens_per_second": speed,
            "model_flops_utilisation": flops / self.peak_flops if self.peak_flops else None,
            "peak_memory_bytes": state.peak_memory_bytes,
            "padding_share": sums["padding"] / sums["positions"],
            "nonfinite_steps": state.nonfinite,
            "reversible_drift": self.judged(sums.get("drift")),
            "seconds": state.seconds,
            "save_stall_seconds": save_stall,
        }

    def lap(self) -> None:
        """Counts the time since the last lap as training."""
        now = time.perf_counter()
        self.interval += now - self.clock
        self.state.seconds += now - self.clock
        self.clock = now

    def judged(self, drift: float | None) -> float | None:
        """The drift that was measured last, if any; says so where it is too large."""
        if drift is not None and drift > self.settings.drift_warning:
            self.console.say(
                f"lsp: reconstruction drift {drift:.1e} is above trainer.drift_warning="
                f"{self.settings.drift_warning:.1e}; memory=recomputed has none"
            )
        return drift

    def evaluate(self) -> dict[str, float | int | None]:
        """Validation loss, over all processes."""
        assert self.validation is not None
        self.lap()
        self.engine.module.eval()
        self.watchdog.phase(f"after step {self.state.step}: evaluating")
        found: Evaluation = evaluate(
            self.engine,
            self.model,
            self.validation,
            self.engine.runtime.device,
            self.bytes_per_token[1],
            self.after_evaluated_batch,
        )
        state = self.state
        state.validation_loss = found.loss if math.isfinite(found.loss) else None
        state.validation_step = state.step
        if state.validation_loss is not None:
            best = state.best_validation_loss
            state.best_validation_loss = found.loss if best is None else min(best, found.loss)
        self.clock = time.perf_counter()  # evaluating is not training
        causal = self.validation.maker.config.name == "causal"
        bits = found.bits_per_byte if causal else None
        text = f"{bits:.4f} bits/byte" if bits is not None else f"loss {found.loss:.4f}"
        self.console.say(f"step {state.step}: validation {text}")
        return {"validation_loss": found.loss, "validation_bits_per_byte": bits}

    def after_evaluated_batch(self, done: int, batches: int) -> None:
        """Tells how far the evaluation is, and ends it where any process was asked to stop."""
        self.watchdog.phase(
            f"after step {self.state.step}: evaluating, {done} of {batches} batches done"
        )
        if done < batches and on_any_rank(self.asked):
            raise EvaluationStoppedError

    def save(self, *, wait: bool = False) -> None:
        """Takes a checkpoint, unless this step has one; it is written while training goes on."""
        self.watchdog.phase(f"after step {self.state.step}: saving")
        if self.saved_step != self.state.step:
            self.lap()
            held = self.saver.save(self.state, self.config_yaml, self.lanes.saved())
            self.saved_step = self.state.step
            self.save_stall = (self.save_stall or 0.0) + held
            self.clock = time.perf_counter()  # nor is saving
        if wait:
            self.saver.finish()

    def interrupted(self) -> int:
        """Saves at once and leaves with the code that launchers requeue on."""
        if self.state.step:
            self.save(wait=True)
        self.console.say(
            f"stopped at step {self.state.step} of {self.settings.max_steps}; the same command "
            f"resumes there (exit code {INTERRUPTED})"
        )
        return INTERRUPTED

    def diverged(self, result: StepResult) -> int:
        """Says why the run ends; the last good checkpoint stays the newest."""
        self.saver.finish()
        self.console.say(
            f"lsp: {self.state.nonfinite_in_a_row} steps in a row had a non-finite loss or "
            f"gradient (last gradient norm {result.gradient_norm}), trainer.max_nonfinite="
            f"{self.settings.max_nonfinite}; the run stops. Try a lower "
            "optimizer.learning_rate, a longer schedule.warmup_steps or precision=bf16/fp32"
        )
        return DIVERGED
