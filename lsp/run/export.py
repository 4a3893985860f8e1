"""`lsp export`: a folder that plain `transformers` loads, or nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import lsp
from data_pipelines.manifest import read_manifest
from lsp.core.exit_codes import DONE
from lsp.hub.card import Evidence
from lsp.hub.export import check_out, export_model
from lsp.hub.published import form_of
from lsp.hub.weights import parse_size
from lsp.models import registry
from lsp.run.compose import to_plain
from lsp.run.config import ExportConfig, RunConfig
from lsp.run.load import LoadedRun, load_run
from lsp.tracking.tracker import read_rows

FLOAT64_FLOPS = 20e9
"""What a CPU core does in a second, within a factor of two or three: for a warning only."""


def run_export(config: ExportConfig) -> int:
    """Exports a checkpoint of a run; returns the exit code.

    Raises:
        UserError: The run or `out` cannot be used, or `transformers` does not find in the folder
            what was trained; nothing is left under `out` then.
    """
    out = config.folder
    check_out(out, overwrite=config.overwrite)
    loaded = load_run(config.run, config.checkpoint)
    architecture = registry.get(registry.name_of(loaded.config.architecture))
    tokenizer = loaded.tokenizer_path
    print(f"exporting step {loaded.step:,} of {config.run} and comparing it in a fresh process")
    _say_if_long(loaded, config.verify_length or loaded.config.sequence_length)
    comparison = export_model(
        loaded.model,
        build=architecture.build,
        sequence_length=loaded.config.sequence_length,
        tokenizer_path=tokenizer if tokenizer.is_dir() else None,
        out=out,
        evidence=gather_evidence(loaded),
        dtype=config.dtype,
        max_shard_size=parse_size("max_shard_size", config.max_shard_size),
        overwrite=config.overwrite,
        verify_length=config.verify_length,
    )
    for case in comparison.cases:
        print(
            f"  logits at length {case.length:,} ({case.dtype}): largest difference "
            f"{case.difference:.1e}, largest logit {case.largest:.3g}"
        )
    form = form_of(loaded.model.config)
    if form.incomparable:
        print(f"  logits were not compared: {form.incomparable}")
    print(
        f"  {comparison.weights} tensors bit-equal, {comparison.texts} texts tokenized alike, "
        f"transformers {comparison.versions['transformers']}"
    )
    if remark := form.remark(loaded.model.config):
        print(f"  {remark.strip()}")
    print(f"exported {out}")
    return DONE


def _say_if_long(loaded: LoadedRun, length: int) -> None:
    """Tells about how long the comparison takes, where it is minutes."""
    # A training step is three forward passes; here are two, one of each program.
    operations = 2 * loaded.model.flops_per_token(length) / 3 * length
    minutes = operations / FLOAT64_FLOPS / 60
    if minutes > 1:
        print(
            f"  comparing {length:,} tokens in float64 on the CPU takes some {minutes:.0f} "
            "minutes; verify_length=4096 compares fewer",
            flush=True,
        )


def gather_evidence(loaded: LoadedRun) -> Evidence:
    """What the folder of a run says about a checkpoint of it."""
    state: dict[str, Any] = dict(loaded.state)
    fingerprint = state.get("data_fingerprint") or ""
    manifest = _manifest(loaded.config, fingerprint)
    return Evidence(
        run_name=loaded.config.run_name,
        step=loaded.step,
        tokens=int(state.get("tokens", 0)),
        config=to_plain(loaded.config),
        results=_results(loaded, state, manifest),
        data=manifest,
        data_fingerprint=fingerprint,
        versions=state.get("versions", {}),
        imported_from=state.get("imported_from"),
        commit=_commit(),
    )


def _results(
    loaded: LoadedRun, state: dict[str, Any], manifest: dict[str, Any] | None
) -> dict[str, float]:
    """The last logged figures up to the checkpoint, and what they are to be compared with."""
    last: dict[str, Any] = {}
    for row in read_rows(loaded.run_dir / "metrics.jsonl"):
        if row["step"] <= loaded.step:
            last |= {key: value for key, value in row.items() if value is not None}
    names = ("loss", "bits_per_byte", "validation_loss", "validation_bits_per_byte")
    results = {name.replace("_", " "): float(last[name]) for name in names if name in last}
    if manifest is not None:
        entropy = manifest["splits"]["validation"]["order0_bits_per_byte"]
        results["order-0 entropy of the validation split, bits per byte"] = float(entropy)
    results["seconds of training"] = float(state.get("seconds", 0.0))
    results["skipped steps (gradient not finite)"] = int(state.get("nonfinite", 0))
    results["processes"] = int(state.get("world_size", 1))
    return results


def _manifest(config: RunConfig, fingerprint: str) -> dict[str, Any] | None:
    """Manifest of the data that a run was trained on, where it still lies in its cache."""
    if not fingerprint:
        return None
    folder = Path(config.data.cache_root) / f"{config.data.source}-{fingerprint[:16]}"
    try:
        manifest: dict[str, Any] = dict(read_manifest(folder))
    except (OSError, ValueError):
        return None
    # Said elsewhere in the card: the run's configuration.
    manifest.pop("config", None)
    return manifest


def _commit() -> str | None:
    """Revision of the code that exports, where it runs from a checkout."""
    checkout = Path(lsp.__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(checkout), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" and local changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
