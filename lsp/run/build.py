"""From a configuration to a running trainer."""

from __future__ import annotations

import sys
from collections import ChainMap
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from data_pipelines.manifest import content_digest
from data_pipelines.prepare import PreparedData
from lsp.checkpointing.snapshot import Snapshot, TrainState
from lsp.checkpointing.store import CheckpointStore
from lsp.core import ranks
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE, INTERRUPTED, USER_ERROR
from lsp.core.ranks import leave_quietly, local_rank
from lsp.core.seeding import seed_everything
from lsp.data.batches import EvaluationBatches, Share, TrainingBatches
from lsp.data.objectives.sample import Vocabulary
from lsp.models import registry
from lsp.models.interface import LanguageModel
from lsp.parallel.collectives import (
    broadcast_object,
    main_process_first,
    main_process_only,
    on_any_rank,
    together,
)
from lsp.parallel.prepare import prepare_engine
from lsp.parallel.runtime import Runtime, check_precision, forget_engine, runtime
from lsp.parallel.strategy import resolve
from lsp.parallel.watchdog import Watchdog
from lsp.run import phases
from lsp.run.certify import certify_start
from lsp.run.compose import save_yaml, to_plain
from lsp.run.config import RunConfig
from lsp.run.folder import only_one, write_run_files
from lsp.run.parts import (
    batch_maker,
    build_model,
    bytes_per_token,
    complete_architecture,
    load_weights,
    prepare_data,
)
from lsp.run.phases import Session
from lsp.run.preflight import agree_on_folder, agree_on_plan, agree_on_start, agree_on_steps
from lsp.run.resume import (
    BEFORE_DATA,
    adopt_before_checks,
    adopt_imported,
    check_unchanged,
    find_snapshot_path,
    load_snapshot,
)
from lsp.run.validate import validate
from lsp.tracking.tracker import make_trackers
from lsp.training.console import TrainingConsole
from lsp.training.optimizers import build_optimizers
from lsp.training.out_of_memory import Needs, explained
from lsp.training.signals import StopRequest, stop_requests
from lsp.training.throughput import peak_tflops
from lsp.training.trainer import Trainer


def run_training(config: RunConfig) -> int:
    """Prepares the data if need be, trains, and leaves a run behind; returns the exit code.

    Raises:
        UserError: If something in the configuration or in what is on disk cannot work.
    """
    _validate_once(config)
    watchdog = Watchdog(
        config.watchdog.seconds, config.run_dir / ".watchdog", ranks.rank(), ranks.world_size()
    )
    with watchdog.contact(), runtime(config.parallelism) as place, stop_requests() as stop:
        agree_on_start(config, place)
        check_precision(config.precision, place.device)
        with only_one(config.run_dir):
            agree_on_folder(config)
            watchdog.clear()
            session = _first_session(config)
            while True:
                code = _train(session, place, stop, watchdog)
                if code != DONE or session.is_last:
                    break
                if on_any_rank(stop.signal is not None):  # while the phase was ending
                    code = INTERRUPTED
                    if place.is_main:
                        print(
                            f"lsp: stopped after phase {session.number + 1}; the same command "
                            f"goes on from there (exit code {INTERRUPTED})",
                            file=sys.stderr,
                        )
                    break
                session = _next_session(session)
        if place.is_main:
            assert session.prepared is not None
            _finish(session.now, session.prepared, done=code == DONE)
        return code


def _first_session(config: RunConfig) -> Session:
    store = CheckpointStore(config.run_dir)
    step_dir = broadcast_object(main_process_only(lambda: _begin(config, store)))
    if step_dir is not None:
        together(lambda: adopt_imported(config, step_dir))
    session = Session(config, phases.reached(config, step_dir), step_dir)
    if step_dir is not None:  # what cannot continue is refused before hours go into other data
        together(lambda: check_unchanged(session.saved, step_dir, BEFORE_DATA))
    if config.phases:  # what cannot be prepared is met before the first step of all
        main_process_first(lambda: _prepare_phases(config))
    return session


def _prepare_phases(config: RunConfig) -> None:
    first, *later = (prepare_data(now).tokenizer_path for now in phases.each_phase(config))
    for tokenizer in later:
        phases.check_same_tokenizer(first, tokenizer)


def _next_session(done: Session) -> Session:
    """The next phase, from the checkpoint that ends this one, as after an interruption."""
    forget_engine()
    store = CheckpointStore(done.config.run_dir)
    step_dir = broadcast_object(main_process_only(store.latest))
    return Session(done.config, done.number + 1, step_dir, done.state)


def _train(session: Session, place: Runtime, stop: StopRequest, watchdog: Watchdog) -> int:
    trainer, session.prepared, needs = build_trainer(session, place, stop, watchdog)
    try:
        with watchdog, _memory_explained(needs, watchdog):
            code = trainer.fit()
    finally:
        trainer.batches.close()
        trainer.console.close()
        for tracker in trainer.trackers:
            tracker.close()
    session.state = trainer.state
    return code


@dataclass(frozen=True)
class _Parts:
    """What a process has before it meets the others to train."""

    model: LanguageModel
    snapshot: Snapshot | None
    batches: TrainingBatches
    validation: EvaluationBatches | None
    memory: dict[str, torch.Tensor] | None


def build_trainer(
    session: Session, place: Runtime, stop: StopRequest, watchdog: Watchdog
) -> tuple[Trainer, PreparedData, Needs]:
    """Puts the parts together; the configuration is completed on the way.

    Args:
        session: What is to be trained.
        place: This process.
        stop: Told by signals.
        watchdog: Told by the loop.
    """
    config, step_dir = session.now, session.step_dir
    store = CheckpointStore(config.run_dir)
    prepared = main_process_first(lambda: prepare_data(config))
    share = plan_share(config, place)
    parts = together(lambda: _parts(session, prepared, share))
    chosen = _decide_strategy(config, parts.model, share, place)
    main_process_only(lambda: write_run_files(config, prepared, fresh=step_dir is None))

    snapshot = parts.snapshot
    state = session.state or (snapshot.state if snapshot is not None else TrainState())
    if state.phase != session.number:  # in other rows the cursor means nothing
        state.phase, state.cursor = session.number, 0
    state.data_fingerprint = prepared.manifest["fingerprint"]
    state.data_digest = content_digest(prepared.manifest)
    validation_batches = len(parts.validation) if parts.validation is not None else 0
    agree_on_steps(config, share, state, validation_batches)
    architecture = registry.get(registry.name_of(config.architecture))
    needs = Needs(
        parts.model,
        config.memory.settled(architecture.residuals(config.architecture)),
        config.parallelism,
        config.precision,
        _optimizer_name(config),
        share,
        config.sequence_length,
        place,
        fresh=snapshot is None or not snapshot.optimizer,
    )
    with _memory_explained(needs, watchdog):
        if config.verify.at_start and state.step < config.trainer.max_steps:
            watchdog.phase("certifying that documents stay apart")
            state.certificate = certify_start(config, parts.model, place)
        watchdog.phase("preparing the model and the optimizer")
        engine = prepare_engine(
            parts.model,
            build_optimizers(parts.model, config.optimizer),
            place,
            config.parallelism,
            config.precision,
            gradient_clip=config.trainer.gradient_clip,
            micro_batch=share.micro_batch,
        )
        if snapshot is not None:
            engine.load_optimizer_state(snapshot.weights, snapshot.optimizer)
            engine.load_scaler_state(state.scaler)
            snapshot.restore_rng(place.rank, config.seed)
    held = config.sequence_length // share.sequence_degree
    agree_on_plan(parts.model, share.micro_batch, held)
    peak = peak_tflops(place.device, config.trainer.peak_tflops)
    console = TrainingConsole(config.total_steps, state.step, enabled=place.is_main)
    if chosen is not None:
        console.say(chosen)
    _announce(console, config, parts.model, prepared, share, state, place)
    trackers = main_process_only(
        lambda: make_trackers(config.tracking, config.run_dir, to_plain(config), state.step)
    )
    trainer = Trainer(
        engine=engine,
        batches=parts.batches,
        validation=parts.validation,
        bytes_per_token=(
            bytes_per_token(prepared, "train"),
            bytes_per_token(prepared, "validation"),
        ),
        settings=config.trainer,
        schedule=config.schedule,
        checkpoints=store,
        checkpoint_config=config.checkpoint,
        config_yaml=save_yaml(config),
        state=state,
        seed=config.seed,
        trackers=trackers or [],
        console=console,
        stop=stop,
        peak_flops=peak * 1e12 * place.world_size if peak else None,
        watchdog=watchdog,
        first_step_bytes=needs.first_step_bytes,
        memory=parts.memory,
        first_step=config.first_step,
        phase=config.phase if config.phases else None,
    )
    return trainer, prepared, needs


def _memory_explained(needs: Needs, watchdog: Watchdog) -> AbstractContextManager[None]:
    return explained(needs, lambda: watchdog.doing, lambda: watchdog.first_to_tell("out-of-memory"))


def plan_share(config: RunConfig, place: Runtime) -> Share:
    """This process's part of a step; `validate` has checked that it divides."""
    rows = config.tokens_per_step // config.sequence_length
    per_rank = rows // place.data_degree
    exchange = place.exchange
    micro_batch = config.trainer.micro_batch
    if not micro_batch:
        here = config.sequence_length // exchange.degree
        bound = max(1, config.trainer.micro_batch_tokens // here)
        micro_batch = max(d for d in range(1, per_rank + 1) if per_rank % d == 0 and d <= bound)
    return Share(
        place.data_rank, place.data_degree, rows, micro_batch, exchange.index, exchange.degree
    )


def _validate_once(config: RunConfig) -> None:
    """Every process finds the same mistake; one per machine tells."""
    try:
        adopt_before_checks(config)
        phases.check_each(config, validate)
    except UserError:
        if local_rank() != 0:
            leave_quietly(USER_ERROR)
        raise


def _optimizer_name(config: RunConfig) -> str:
    """As `lsp.parallel.memory` knows it: `AdamW`, `Adafactor` or `Muon`."""
    return type(config.optimizer).__name__.removesuffix("Config")


def _decide_strategy(
    config: RunConfig, model: LanguageModel, share: Share, place: Runtime
) -> str | None:
    """Puts a strategy in the place of `auto`; returns the sentence that says why."""
    if config.parallelism.strategy != "auto":
        return None
    choice = resolve(
        config.parallelism,
        config.precision,
        _optimizer_name(config),
        model,
        place,
        rows=share.micro_batch,
        length=config.sequence_length // share.sequence_degree,
    )
    config.parallelism.strategy = choice.strategy
    return choice.reason


def _begin(config: RunConfig, store: CheckpointStore) -> Path | None:
    store.clean()
    step_dir = find_snapshot_path(config, store)
    if step_dir is not None:
        store.set_aside_after(store.step_of(step_dir))
    return step_dir


def _parts(session: Session, prepared: PreparedData, share: Share) -> _Parts:
    """Makes what can be made, and refused, without the other processes."""
    config, step_dir = session.now, session.step_dir
    vocabulary = complete_architecture(config, prepared)
    snapshot, memory, goes_on = None, None, True
    if step_dir is not None:
        saved = session.saved
        complete_architecture(saved, prepared)
        check_unchanged(saved, step_dir)
        goes_on = saved.phase == config.phase
        snapshot = load_snapshot(step_dir, content_digest(prepared.manifest) if goes_on else None)
        memory = snapshot.memory(share.lanes) if goes_on else None
    seed_everything(config.seed)
    model = build_model(config)
    registry.get(registry.name_of(config.architecture)).begin(model, snapshot is None)
    if snapshot is not None:
        load_weights(model, snapshot.weights, snapshot.path)
        if not goes_on:
            snapshot = _lengthened(snapshot, model, session)
    return _Parts(
        model=model,
        snapshot=snapshot,
        batches=TrainingBatches(batch_maker(config, prepared, "train", vocabulary), share),
        validation=_validation(config, prepared, vocabulary, share),
        memory=memory,
    )


def _lengthened(snapshot: Snapshot, model: LanguageModel, session: Session) -> Snapshot:
    """Lets the longer rows of a phase begin with the positions that were learnt before it."""
    learned = phases.longest_before(session.config, session.number)
    if learned >= session.now.sequence_length:
        return snapshot
    changed = model.repeat_positions(learned)
    weights = {name: model.get_parameter(name).detach().clone() for name in changed}
    return replace(snapshot, weights=ChainMap(weights, cast(Any, snapshot.weights)))


def _finish(config: RunConfig, prepared: PreparedData, *, done: bool) -> None:
    from lsp.run.finish import finish

    try:
        finish(config, prepared, done=done)
    except OSError as error:
        # The run itself is safe, and its exit code is what launchers decide by.
        print(f"lsp: {error.filename or 'loss.png'}: {error.strerror}", file=sys.stderr)


def _validation(
    config: RunConfig, prepared: PreparedData, vocabulary: Vocabulary, share: Share
) -> EvaluationBatches | None:
    if len(prepared.split("validation")) == 0:
        return None
    maker = batch_maker(config, prepared, "validation", vocabulary)
    return EvaluationBatches(maker, share, config.trainer.eval_rows)


def _announce(
    console: TrainingConsole,
    config: RunConfig,
    model: LanguageModel,
    prepared: PreparedData,
    share: Share,
    state: TrainState,
    place: Runtime,
) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    name = registry.title_of(config.architecture)
    console.say(
        f"{name}: {parameters:,} parameters, {config.objective.name}, "
        f"{config.sequence_length:,} tokens a row, {config.tokens_per_step:,} a step "
        f"({place.world_size} process(es) x {share.accumulation} x {share.micro_batch} rows)"
    )
    if config.phases:
        console.say(
            f"phase {config.phase + 1} of {len(config.phases)}: steps {config.first_step + 1:,} to "
            f"{config.trainer.max_steps:,}"
        )
    console.say(
        f"data: {len(prepared.split('train')):,} rows to train on, "
        f"{len(prepared.split('validation')):,} to validate on ({prepared.path})"
    )
    if len(prepared.split("validation")) == 0:
        console.say("lsp: the data has no validation documents; nothing is evaluated")
    if state.step >= config.total_steps:
        more = "another phase" if config.phases else "a higher trainer.max_steps"
        console.say(f"{config.run_dir} is done: it is at step {state.step}; {more} goes on")
    elif state.step:
        console.say(f"resuming {config.run_dir} at step {state.step}")
    if state.certificate is not None and state.step < config.trainer.max_steps:
        console.say(_certified(state.certificate))


def _certified(certificate: dict[str, Any]) -> str:
    result, length = certificate["result"], certificate.get("length")
    return f"certificate: {result}" + (f" (in rows of {length} tokens)" if length else "")
