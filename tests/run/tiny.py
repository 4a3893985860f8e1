"""Runs of seconds over a small corpus, and what they leave behind."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from lsp.checkpointing.files import read_tensors
from lsp.checkpointing.store import CheckpointStore, read_weights
from lsp.tracking.tracker import read_rows

TEXT = "reversible layers keep two streams and give back what they were given def return 0 1"

LONGFORMER = [
    "experiment=",
    "architecture=longformer",
    "objective=masked",
    "architecture.hidden_size=32",
    "architecture.num_hidden_layers=2",
    "architecture.num_attention_heads=2",
    "architecture.intermediate_size=48",
    "architecture.attention_window=32",
    "architecture.global_tokens=1",
    "architecture.hidden_dropout_prob=0.1",
    "architecture.attention_probs_dropout_prob=0.1",
    "sequence_length=128",
    "schedule.warmup_steps=2",
    "trainer.eval_rows=8",
]
"""A tiny model with global tokens."""

REMEMBERING = [
    "experiment=",
    "architecture=transformer_xl",
    "packing=concatenate",
    "architecture.d_model=32",
    "architecture.d_embed=32",
    "architecture.n_layer=2",
    "architecture.n_head=2",
    "architecture.d_head=16",
    "architecture.d_inner=48",
    "architecture.mem_len=100",
    "architecture.dropout=0.1",
    "architecture.dropatt=0.1",
    "sequence_length=64",
    "tokens_per_step=2048",
    "schedule.warmup_steps=2",
    "trainer.eval_rows=8",
]
"""A tiny model with a memory, which the epochs of the corpus end every seven steps."""

TIMING = {"tokens_per_second", "model_flops_utilisation", "peak_memory_bytes", "seconds"}
TIMING |= {"save_stall_seconds"}
"""Columns that no two runs share."""


def write_corpus(folder: Path, files: int = 30) -> Path:
    """Text files of very different lengths, so that rows differ in padding."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    for number in range(files):
        words = generator.choices(TEXT.split(), k=generator.randint(10, 160))
        (folder / f"{number:02d}.txt").write_text(" ".join(words))
    return folder


def words(root: Path, corpus: Path, *overrides: str, name: str = "run") -> list[str]:
    """What is typed after `lsp train` for a tiny run; later overrides win, empty ones leave out."""
    given = {
        "experiment": "debug",
        "data": "text",
        "data.paths": f"[{corpus}]",
        "data.cache_root": str(corpus.parent / "prepared"),
        "data.num_processes": "1",
        "data.max_bytes": "null",
        "packing": "best_fit",
        "checkpoint.root": str(root),
        "run_name": name,
        "tokens_per_step": "512",
        "trainer.max_steps": "12",
        "trainer.log_every": "1",
        "trainer.eval_every": "6",
        "trainer.sample_tokens": "0",
        "trainer.peak_tflops": "1",
        "checkpoint.every": "4",
        "verify.at_start": "false",
    }
    for override in overrides:
        key, _, value = override.partition("=")
        given[key] = value
    return [f"{key}={value}" for key, value in given.items() if value]


def curve(run_dir: Path) -> list[dict[str, Any]]:
    """The logged rows without what depends on the clock."""
    rows = read_rows(run_dir / "metrics.jsonl")
    return [{key: row[key] for key in row.keys() - TIMING} for row in rows]


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of the newest checkpoint."""
    step_dir = CheckpointStore(run_dir).latest()
    assert step_dir is not None
    return {**read_weights(step_dir), **read_tensors(step_dir, "optimizer")}


def assert_same_run(found: Path, expected: Path) -> None:
    """Bit for bit: every logged figure, every weight, all optimizer state."""
    assert curve(found) == curve(expected)
    ours, theirs = tensors(found), tensors(expected)
    assert ours.keys() == theirs.keys()
    different = [key for key, value in theirs.items() if not torch.equal(ours[key], value)]
    assert different == []
