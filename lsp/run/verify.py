"""`lsp verify packing`: shows that nothing leaks, or says what does."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.multiprocessing.spawn import start_processes

from lsp.checkpointing.files import write_json
from lsp.core.errors import UserError, require
from lsp.core.exit_codes import DONE, LEAK
from lsp.core.objectives import NEXT_TOKEN
from lsp.core.ranks import is_main, world_size
from lsp.core.seeding import seed_everything
from lsp.core.versions import versions
from lsp.models import registry
from lsp.parallel.config import ParallelismConfig
from lsp.parallel.runtime import Runtime, check_precision, choose_device, runtime
from lsp.run.config import RunConfig
from lsp.run.parts import build_model
from lsp.run.phases import check_each, each_phase
from lsp.run.validate import validate_data
from lsp.verify.cells import DEGREES, Cell, all_cells, certify_cells, record
from lsp.verify.certify import certify
from lsp.verify.mixing import CARRIED, CHOICE, KEPT_APART, Mixing
from lsp.verify.variants import HEADS

START_METHOD = "spawn"
VOCABULARY = 1024
"""Of a model that would take its vocabulary from a tokenizer."""
PIPED_WIDTH = 120

Records = list[dict[str, Any]]


def run_verify(config: RunConfig) -> int:
    """Certifies one model or all; prints and writes the result, and returns the exit code.

    Raises:
        UserError: The configuration cannot work, or the result not be written.
    """
    everything, processes = config.verify.everything, world_size()
    runs = [] if everything else _completed(config)
    degrees: Sequence[int] = [config.parallelism.sequence]
    if everything:
        require(
            HEADS % processes == 0,
            f"{processes} processes were started, and rows of the tiny models can be shared by as "
            f"many as divide their {HEADS} heads: start one, which starts what it needs, or "
            f"{HEADS}",
        )
        degrees = DEGREES if processes == 1 else [processes]
    device = config.parallelism.device
    found = [entry for degree in degrees for entry in _at_degree(runs, degree, device)]
    holds = all(entry["holds"] for entry in found)
    if is_main():
        # A table that is piped elsewhere has no terminal's width to keep to.
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        show = _show_everything if everything else _show_runs
        show(found, Console(file=sys.stdout, highlight=False, width=width))
        _write(config, {"holds": holds, "cells": found})
    return DONE if holds else LEAK


def _completed(config: RunConfig) -> list[RunConfig]:
    """The phases of a run, with models as far as they are known without its data.

    Raises:
        UserError: Something of it would be refused by `lsp train`.
    """
    check_each(config, validate_data)
    degree, processes = config.parallelism.sequence, world_size()
    require(
        processes in (1, degree),
        f"parallelism.sequence={degree}: {processes} processes were started; start one, which "
        f"starts what it needs, or {degree}",
    )
    runs = []
    for run in each_phase(config):
        architecture = registry.get(registry.name_of(run.architecture))
        size = run.architecture.vocab_size
        if not getattr(run.architecture, "cutoffs", []):  # which only a large one has
            size = min(size, VOCABULARY)
        model = architecture.resolve(
            run.architecture,
            vocab_size=size,
            sequence_length=run.longest_row,
            objective=run.objective.name,
        )
        length = run.verify.length or run.sequence_length
        require(
            length <= run.sequence_length,
            f"verify.length={length} is more than sequence_length={run.sequence_length}: use 0 for "
            "a few hundred, or up to that",
        )
        model.check_length(length)
        architecture.check_shares(model, length, degree)
        runs.append(replace(run, architecture=model))
    return runs


def _write(config: RunConfig, result: dict[str, Any]) -> None:
    name = config.verify.certificate
    out = Path(config.verify.out or f"verified/{name}.json")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, {"certificate": name, **result, "versions": versions()})
    except OSError as error:
        raise UserError(f"verify.out={out} cannot be written: {error.strerror or error}") from error
    print(f"written to {out}")


def _at_degree(runs: list[RunConfig], degree: int, device: str) -> Records:
    """What is found where so many processes share rows: here, or in processes started for it.

    Args:
        runs: Whose models are certified; empty for those of all architectures.
        degree: How many.
        device: Value of `parallelism.device`.
    """
    if degree > 1 and torch.cuda.device_count() < degree:
        require(
            device != "cuda",
            f"parallelism.device=cuda: rows shared by {degree} processes need as many GPUs, and "
            f"this machine has {torch.cuda.device_count()}; use parallelism.device=auto or cpu",
        )
        device = "cpu"
    parallelism = ParallelismConfig(
        strategy="single" if degree == 1 else "ddp", sequence=degree, device=device
    )
    for run in runs:  # before processes are started for what cannot work
        check_precision(run.precision, choose_device(parallelism))
    if degree in (1, world_size()):
        return _certify(runs, parallelism)
    with tempfile.TemporaryDirectory(prefix="lsp-verify-") as folder:
        threads = max(1, torch.get_num_threads() // degree)
        result = Path(folder) / "found.json"
        start_processes(  # type: ignore[no-untyped-call]
            _process,
            (degree, _free_port(), threads, runs, parallelism, result),
            nprocs=degree,
            start_method=START_METHOD,
        )
        records: Records = json.loads(result.read_text(encoding="utf-8"))
        return records


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _process(
    rank: int,
    degree: int,
    port: int,
    threads: int,
    runs: list[RunConfig],
    parallelism: ParallelismConfig,
    result: Path,
) -> None:
    """One of the processes that share rows, told what a launcher would tell it."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": degree, "LOCAL_WORLD_SIZE": degree}
    os.environ |= {name: str(value) for name, value in here.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(threads)
    records = _certify(runs, parallelism)
    if rank == 0:
        result.write_text(json.dumps(records), encoding="utf-8")


def _certify(runs: list[RunConfig], parallelism: ParallelismConfig) -> Records:
    with runtime(parallelism) as place:
        return [_certify_run(run, place) for run in runs] or _certify_all(place)


def _certify_run(config: RunConfig, place: Runtime) -> dict[str, Any]:
    seed_everything(config.seed)
    found = certify(
        build_model(config).to(place.device),
        sequence_length=config.sequence_length,
        causal=config.objective.name in NEXT_TOKEN,
        exchange=place.exchange,
        precision=config.precision.name,
        device=place.device,
        length=config.verify.length,
    )
    architecture = registry.get(registry.name_of(config.architecture))
    return {
        "architecture": getattr(config.architecture, "model_type", None) or architecture.name,
        "objective": config.objective.name,
        "memory": config.memory.settled(architecture.residuals(config.architecture)).residual,
        "precision": config.precision.name,
        "degree": place.exchange.degree,
        **record(found, place.device),
    }


def _certify_all(place: Runtime) -> Records:
    cells, records = list(all_cells([place.exchange.degree])), []
    quiet = not (place.is_main and sys.stderr.isatty())
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=len(cells))

        def done(cell: Cell, found: Mixing) -> None:
            records.append({**asdict(cell), **record(found, place.device)})
            progress.update(task, advance=1, description=str(cell))

        certify_cells(cells, place.exchange, place.device, done)
    return records


def _show_everything(records: Records, console: Console) -> None:
    """A row for each kind of attention, a column for each number of processes that share rows."""
    degrees = sorted({entry["degree"] for entry in records})
    table = Table(title="who sees whom, in values and in gradients")
    for heading in ("architecture", "attention", "documents", "in time", "remembers"):
        table.add_column(heading)
    for degree in degrees:
        table.add_column("whole rows" if degree == 1 else f"shared by {degree}")
    variants: dict[tuple[str, ...], Records] = {}
    for entry in records:
        key = (entry["architecture"], entry["attention"], entry["objective"])
        variants.setdefault(key, []).append(entry)
    for (architecture, attention, _), entries in variants.items():
        first = entries[0]
        table.add_row(
            architecture,
            attention,
            first["documents"],
            "causal*" if first["in_time"] == CHOICE else first["in_time"],
            {None: "", KEPT_APART: "its document", CARRIED: "all documents"}[first["remembered"]],
            *(_count([e for e in entries if e["degree"] == degree]) for degree in degrees),
        )
    console.print(table)
    print("counted: stored, recomputed and reversible where possible in fp32, the leanest in bf16")
    if any(entry["in_time"] == CHOICE for entry in records):
        print("* a later token shows nothing of itself, but takes a place in the order by hashes,")
        print("  and so chooses which of the earlier ones are seen, as in the published model")
    _show_problems(records, console)


def _count(entries: Records) -> str:
    bad = sum(not entry["holds"] for entry in entries)
    return f"{bad} of {len(entries)} FAIL" if bad else f"{len(entries)} hold"


def _show_runs(records: Records, console: Console) -> None:
    for entry in records:
        _show_run(entry, console)
    _show_problems(records, console)


def _show_run(entry: dict[str, Any], console: Console) -> None:
    """Which document reaches which, in values, in gradients or in both."""
    numbers = sorted({n for pairs in entry["reaches"].values() for pair in pairs for n in pair})
    shared = f", shared by {entry['degree']}" if entry["degree"] > 1 else ""
    print(
        f"{entry['architecture']}, {entry['objective']}, {entry['memory']}, {entry['precision']}, "
        f"{entry['device']}, rows of {entry['length']} tokens{shared}"
    )
    table = Table()
    table.add_column("tokens of")
    documents = [number for number in numbers if number]
    for number in documents:
        table.add_column(f"reach {number}", justify="center")
    for source in (0, *documents):
        reached = {
            number: [w for w in entry["reaches"] if [source, number] in entry["reaches"][w]]
            for number in documents
        }
        cells = ["both" if len(ways) == 2 else "".join(ways) or "-" for ways in reached.values()]
        table.add_row(f"document {source}" if source else "padding", *cells)
    console.print(table)
    memory = f", memory {entry['remembered']}" if entry["remembered"] else ""
    print(f"documents {entry['documents']}, {entry['in_time']}{memory}: ", end="")
    print("holds" if entry["holds"] else "DOES NOT HOLD")


def _show_problems(records: Records, console: Console) -> None:
    for entry in records:
        if entry["holds"]:
            continue
        keys = ("architecture", "attention", "objective", "memory", "precision")
        shared = [f"rows shared by {entry['degree']}"] if entry["degree"] > 1 else []
        console.print(", ".join([*(entry[k] for k in keys if k in entry), *shared]), style="bold")
        for problem in entry["problems"]:
            print(f"  {problem}")
        if entry["known"]:
            print(f"  known of the published code: {entry['known']}")
