"""A run on disk, as training leaves it, without the training."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from data_pipelines.manifest import content_digest
from data_pipelines.prepare import PreparedData
from lsp.checkpointing.files import write_tensors, write_text
from lsp.checkpointing.snapshot import TrainState
from lsp.checkpointing.store import CheckpointStore, write_state
from lsp.core.versions import versions
from lsp.models.interface import LanguageModel
from lsp.run.compose import load_train_config, save_yaml
from lsp.run.config import RunConfig
from lsp.run.parts import build_model, complete_architecture, prepare_data


def write_text_corpus(folder: Path) -> None:
    """Documents long enough for a validation split."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(20):
        lines = [f"def function_{number}_{line}(x):\n    return x + {line}\n" for line in range(30)]
        (folder / f"{number}.txt").write_text("\n".join(lines))


def make_run(
    root: Path, *overrides: str, experiment: str | None = "debug"
) -> tuple[RunConfig, LanguageModel, PreparedData]:
    """Writes `<root>/checkpoints/small` with a checkpoint of fresh weights at step 3."""
    write_text_corpus(root / "corpus")
    config = load_train_config(
        [
            *([] if experiment is None else [f"experiment={experiment}"]),
            "run_name=small",
            "sequence_length=64",
            f"checkpoint.root={root / 'checkpoints'}",
            "data=text",
            f"data.paths=[{root / 'corpus'}/*.txt]",
            "data.validation_fraction=0.3",
            f"data.cache_root={root / 'prepared'}",
            *overrides,
        ]
    )
    prepared = prepare_data(config)
    complete_architecture(config, prepared)
    torch.manual_seed(0)
    model = build_model(config).eval()
    store = CheckpointStore(config.run_dir)
    folder = store.begin(3)
    write_tensors(folder, "model", model.state_dict().items())
    state = TrainState(
        step=3,
        tokens=384,
        data_fingerprint=prepared.manifest["fingerprint"],
        data_digest=content_digest(prepared.manifest),
    )
    write_state(folder, asdict(state) | {"world_size": 1, "versions": versions()})
    write_text(folder / "config.yaml", save_yaml(config))
    store.commit(folder, 3)
    write_text(config.run_dir / "config.yaml", save_yaml(config))
    shutil.copytree(prepared.tokenizer_path, config.run_dir / "tokenizer")
    rows = '{"step": 3, "loss": 5.5, "validation_bits_per_byte": 7.5}\n{"step": 6, "loss": 1.0}\n'
    (config.run_dir / "metrics.jsonl").write_text(rows)
    return config, model, prepared
