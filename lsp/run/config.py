"""The configuration of every verb: dataclasses are the schema, `conf/` holds the values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from lsp.checkpointing.config import CheckpointConfig
from lsp.core.errors import require, unknown_choice
from lsp.core.objectives import OBJECTIVES
from lsp.data.config import ObjectiveConfig
from lsp.evaluation.config import ReportsConfig
from lsp.models.hub.config import HubConfig
from lsp.models.longformer_config import LongformerConfig
from lsp.models.mega_config import MegaConfig
from lsp.models.memory import MemoryConfig
from lsp.models.nezha_config import NezhaConfig
from lsp.models.reformer_config import ReformerConfig
from lsp.models.transformer_xl_config import TransformerXLConfig
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.tracking.config import TrackingConfig
from lsp.training.config import (
    AdafactorConfig,
    AdamWConfig,
    MuonConfig,
    OptimizerConfig,
    PhaseConfig,
    ScheduleConfig,
    TrainerConfig,
    WatchdogConfig,
)
from lsp.verify.config import VerifyConfig

ARCHITECTURES: dict[str, type] = {
    "reformer": ReformerConfig,
    "longformer": LongformerConfig,
    "transformer_xl": TransformerXLConfig,
    "mega": MegaConfig,
    "nezha": NezhaConfig,
    "hub": HubConfig,
}
"""The config classes of the registry by name, without the models, whose import takes seconds."""

NATIVE = tuple(name for name in ARCHITECTURES if name != "hub")
"""Architectures that are written here."""

OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adamw": AdamWConfig,
    "adafactor": AdafactorConfig,
    "muon": MuonConfig,
}

SPLITS = ("train", "validation")
DTYPES = ("fp32", "bf16", "fp16")
FORMATS = ("text", "markdown", "json")


@dataclass
class RunConfig:
    """Everything that `lsp prepare` and `lsp train` know about a run.

    Attributes:
        run_name: The run's folder is `<checkpoint.root>/<run_name>/`.
        seed: Of the weights, the order of the data, dropout and hashing.
        sequence_length: Tokens in a row.
        tokens_per_step: Tokens in one optimizer step, over all processes and accumulation.
        architecture: Config of one architecture (`ARCHITECTURES`).
        optimizer: Config of one optimizer (`OPTIMIZERS`).
        phases: Parts of the run, one after the other, with rows and windows of their own; their
            lengths take the place of `sequence_length`, their steps that of `trainer.max_steps`.
        phase: Number of the phase that a checkpoint is of; set by the run.
    """

    run_name: str = "run"
    seed: int = 0
    sequence_length: int = 1024
    tokens_per_step: int = 8192
    architecture: Any = MISSING
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    optimizer: OptimizerConfig = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    phases: list[PhaseConfig] = field(default_factory=list)
    phase: int = 0

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[\w.+-]+", self.run_name) is not None and self.run_name.strip(".") != "",
            f"run_name={self.run_name!r} must be the name of one folder: letters, digits and "
            "_ . + -, e.g. run_name=first_run (checkpoint.root says where it lies)",
        )
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be 0 or more")
        for key in ("sequence_length", "tokens_per_step"):
            value = getattr(self, key)
            require(value > 0, f"{key}={value} must be 1 or more, e.g. {key}=8192")
        for number, phase in enumerate(self.phases):
            phase.check(f"phases[{number}]")
        require(
            0 <= self.phase < max(1, len(self.phases)),
            f"phase={self.phase} is for the run to set: leave it out; phases=[…] lists them",
        )
        windows = [phase.attention_window is None for phase in self.phases]
        require(
            all(windows) or not any(windows),
            "phases: attention_window has to be given for all of them, or for none",
        )

    @property
    def longest_row(self) -> int:
        """Tokens in a row of the longest phase: positions are made for it from the start."""
        return max((p.sequence_length for p in self.phases), default=self.sequence_length)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(p.steps for p in self.phases) if self.phases else self.trainer.max_steps

    @property
    def first_step(self) -> int:
        """Step at which the phase, and with it the schedule, begins."""
        return self.end_of_phase(self.phase - 1) if self.phases else 0

    def end_of_phase(self, number: int) -> int:
        """Optimizer steps done when a phase ends; 0 before the first."""
        return sum(p.steps for p in self.phases[: number + 1])

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.checkpoint.root) / self.run_name


@dataclass
class EvaluateConfig(ReportsConfig):
    """What `lsp evaluate` measures; see `ReportsConfig` for the reports.

    Attributes:
        run: Folder of a run.
        checkpoint: `latest`, `best` or a step.
        split: `validation` or `train`.
        rows: Rows evaluated; 0 for all.
        out: JSON file for the result; null is `<run>/evaluation.json`.
    """

    run: str = MISSING
    checkpoint: str = "latest"
    split: str = "validation"
    rows: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_checkpoint(self.checkpoint)
        if self.split not in SPLITS:
            raise unknown_choice("split", self.split, SPLITS)
        require(self.rows >= 0, f"rows={self.rows} must be 0 (all) or more")


@dataclass
class GenerateConfig:
    """What `lsp generate` continues, and how it samples.

    Attributes:
        run: Folder of a run.
        checkpoint: `latest`, `best` or a step.
        prompt: Text to continue.
        prompt_file: File whose text is continued, instead of `prompt`.
        max_new_tokens: Length of the continuation.
        temperature: Divides the scores before sampling.
        top_k: Sample among so many of the likeliest tokens; 0 for all.
        top_p: Sample among the likeliest tokens that together reach this probability.
        greedy: Take the likeliest token instead of sampling.
        seed: Of the sampling.
        num_samples: Continuations of the same prompt.
        cache: Whether the model remembers what it has read; otherwise it reads the whole text again
            for every token, which is slow, and shows what the cache has to agree with.
    """

    run: str = MISSING
    checkpoint: str = "latest"
    prompt: str = ""
    prompt_file: str | None = None
    max_new_tokens: int = 200
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    seed: int = 0
    num_samples: int = 1
    cache: bool = True

    def __post_init__(self) -> None:
        _check_checkpoint(self.checkpoint)
        require(
            not (self.prompt and self.prompt_file),
            f"prompt={self.prompt!r} and prompt_file={self.prompt_file} cannot both be given",
        )
        for key in ("max_new_tokens", "num_samples"):
            value = getattr(self, key)
            require(value > 0, f"{key}={value} must be 1 or more")
        require(
            self.temperature > 0,
            f"temperature={self.temperature} must be positive; greedy=true takes the likeliest "
            "token",
        )
        require(self.top_k >= 0, f"top_k={self.top_k} must be 0 (all) or more")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1")
        require(self.seed >= 0, f"seed={self.seed} must be 0 or more")


@dataclass
class ExportConfig:
    """What `lsp export` writes.

    Attributes:
        run: Folder of a run.
        checkpoint: `latest`, `best` or a step.
        out: Folder of the export; null is `exported/<name of the run>`.
        max_shard_size: Largest file of weights, e.g. `5GB` or `500MB`.
        dtype: Number format of the weights: `fp32`, `bf16` or `fp16`.
        overwrite: Whether an earlier export in `out` is replaced.
        verify_length: Tokens of the long comparison with `transformers`; 0 for the length of
            the training.
    """

    run: str = MISSING
    checkpoint: str = "latest"
    out: str | None = None
    max_shard_size: str = "5GB"
    dtype: str = "fp32"
    overwrite: bool = False
    verify_length: int = 0

    def __post_init__(self) -> None:
        _check_checkpoint(self.checkpoint)
        if self.dtype not in DTYPES:
            raise unknown_choice("dtype", self.dtype, DTYPES)
        require(
            re.fullmatch(r"\d*[1-9]\d*(\.\d+)? *([KMGT]?B)?", self.max_shard_size) is not None,
            f"max_shard_size={self.max_shard_size} must be a size such as 5GB or 500MB",
        )
        require(
            self.verify_length >= 0,
            f"verify_length={self.verify_length} must be 0 (the length of the training) or more",
        )

    @property
    def folder(self) -> Path:
        """Where the export goes."""
        return Path(self.out) if self.out else Path("exported") / Path(self.run).resolve().name


@dataclass
class ConsolidateConfig:
    """What `lsp consolidate` writes.

    Attributes:
        run: Folder of a run.
        checkpoint: `latest`, `best` or a step.
        out: The file; null is `<name of the run>.safetensors`.
        overwrite: Whether an earlier file is replaced.
    """

    run: str = MISSING
    checkpoint: str = "latest"
    out: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        _check_checkpoint(self.checkpoint)

    @property
    def file(self) -> Path:
        """Where the weights go."""
        return Path(self.out or f"{Path(self.run).resolve().name}.safetensors")


LENGTHENING = ("sequence_length", "attention_window")
"""Keys of `lsp import` for making a long model of a short one."""


@dataclass
class ImportConfig:
    """What `lsp import` reads.

    Attributes:
        source: Folder or Hub name of a published checkpoint; typed as `from=`.
        out: Folder of the run that is made; null is `checkpoints/<last part of source>`.
        architecture: Name of the architecture; null for what the checkpoint's `model_type` says.
        sequence_length: Positions of the Longformer that a RoBERTa is made into (2004.05150,
            section 5); null for a checkpoint that stays as it is.
        attention_window: Of that Longformer: a number, or one per layer; null is 512.
        objective: What it goes on with, for an architecture of `transformers`; null for what its
            head was made for.
    """

    source: str = MISSING
    out: str | None = None
    architecture: str | None = None
    sequence_length: int | None = None
    attention_window: Any = None
    objective: str | None = None

    def __post_init__(self) -> None:
        require(
            isinstance(self.source, str) and bool(self.source.strip()),
            f"from={self.source} must be a name or a folder, e.g. from=google/reformer-enwik8",
        )
        if self.architecture not in (None, *ARCHITECTURES):
            raise unknown_choice("architecture", self.architecture, ARCHITECTURES)
        require(
            self.out is None or (isinstance(self.out, str) and bool(self.out.strip())),
            f"out={self.out} must be a folder, e.g. out=checkpoints/enwik8",
        )
        length, window = self.sequence_length, self.attention_window
        require(
            length is None or (type(length) is int and length >= 1),
            f"sequence_length={length} must be a whole number, e.g. sequence_length=4096",
        )
        windows = window if isinstance(window, list) and window else [window]
        require(
            window is None or all(type(one) is int for one in windows),
            f"attention_window={window} must be a whole number, or a list of one for each layer, "
            "e.g. attention_window=512",
        )
        require(
            self.objective is None or self.architecture in (None, "hub"),
            f"objective={self.objective} is for architecture=hub; other checkpoints go on with "
            "what they were made for: leave it out",
        )
        if self.objective not in (None, *OBJECTIVES):
            raise unknown_choice("objective", self.objective, OBJECTIVES)
        for key in LENGTHENING:
            value = getattr(self, key)
            require(
                value is None or self.architecture == "longformer",
                f"{key}={value} is for making a Longformer of a RoBERTa: add "
                "architecture=longformer, or leave it out",
            )

    @property
    def folder(self) -> Path:
        """Where the run goes."""
        if self.out:
            return Path(self.out)
        return Path("checkpoints") / Path(self.source.rstrip("/")).name


@dataclass
class ArchitecturesConfig:
    """What `lsp architectures` shows.

    Attributes:
        name: An architecture, to know all of it; null for the table.
        format: `text`, `markdown` or `json`.
        out: A file, instead of the terminal.
    """

    name: str | None = None
    format: str = "text"
    out: str | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown_choice("format", self.format, FORMATS)


def _check_checkpoint(checkpoint: str) -> None:
    require(
        checkpoint in ("latest", "best") or checkpoint.isdecimal(),
        f"checkpoint={checkpoint} must be latest, best or a step, e.g. checkpoint=100",
    )


def register_schemas() -> None:
    """Makes the dataclasses known to Hydra as `<name>_schema`; safe to call again."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=RunConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="generate_schema", node=GenerateConfig)
    store.store(name="export_schema", node=ExportConfig)
    store.store(name="consolidate_schema", node=ConsolidateConfig)
    store.store(name="architectures_schema", node=ArchitecturesConfig)
    for group, schema in (
        ("objective", ObjectiveConfig),
        ("data", DataConfig),
        ("tokenizer", TokenizerConfig),
        ("packing", PackingConfig),
        ("parallelism", ParallelismConfig),
        ("precision", PrecisionConfig),
        ("memory", MemoryConfig),
        ("schedule", ScheduleConfig),
        ("checkpoint", CheckpointConfig),
        ("tracking", TrackingConfig),
    ):
        store.store(group=group, name=f"{group}_schema", node=schema)
    for name, optimizer in OPTIMIZERS.items():
        store.store(group="optimizer", name=f"{name}_schema", node=optimizer)
    for name, architecture in ARCHITECTURES.items():
        store.store(group="architecture", name=f"{name}_schema", node=architecture)
