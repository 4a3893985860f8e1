"""Six architectures of `transformers`, each trained on real text with the objective of its paper.

    python benchmarks/catalog_training.py --corpus war_and_peace.txt [--only llama] [--save]

One of each family: a decoder, sparse attention from both sides, an encoder and a decoder, a state
space, a permuted order, a generator and what tells its tokens. Each is small enough for one core
and some minutes, and trained by `lsp train` on rows of the same text and the same vocabulary. Their
losses are of different things, so what says that they learn is how each falls. A run that is there
already is not trained again, and one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks._common import RESULTS, save, stamp, table
from lsp.checkpointing.store import CheckpointStore, read_weights
from lsp.hub.weights import fingerprint

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LENGTH, ROWS, VOCABULARY = 256, 8, 4096
SMOOTHED = 20
"""Steps whose losses a point of a curve is the mean of."""

COMMON = [
    "data=text",
    "tokenizer=bpe",
    f"tokenizer.vocab_size={VOCABULARY}",
    "architecture=hub",
    "memory=stored",
    "optimizer.learning_rate=1e-3",
    "trainer.log_every=1",
    "trainer.eval_rows=64",
    "checkpoint.every=100",
    "checkpoint.keep_last=1",
]

BERT: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        objective: That of the architecture's paper.
        values: Keys of its published configuration.
        others: Further overrides.
        length: Tokens of a row.
    """

    objective: str
    values: dict[str, Any]
    others: tuple[str, ...] = ()
    length: int = LENGTH

    @property
    def words(self) -> list[str]:
        """What one would type."""
        keys = [f"+architecture.model_init_config.{k}={v}" for k, v in self.values.items()]
        rows = [f"sequence_length={self.length}", f"tokens_per_step={ROWS * self.length}"]
        return [f"objective={self.objective}", *rows, *keys, *self.others]


RUNS = {
    "llama": Run(
        "causal",
        {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 384,
        },
    ),
    "big_bird": Run("masked", BERT | {"block_size": 16, "num_random_blocks": 2}),
    "longt5": Run(
        "gap_sentences",
        {
            "d_model": 128,
            "d_kv": 32,
            "d_ff": 384,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "local_radius": 31,
            "dropout_rate": 0.0,
        },
    ),
    # Without its CUDA kernel a scan takes a step of Python for each position.
    "mamba": Run(
        "causal", {"hidden_size": 128, "num_hidden_layers": 2, "state_size": 8}, length=128
    ),
    "xlnet": Run(
        "permutation", {"d_model": 128, "n_layer": 3, "n_head": 4, "d_inner": 512, "dropout": 0.0}
    ),
    "electra": Run(
        "replaced_token",
        BERT | {"embedding_size": 128},
        ("+architecture.generator.num_hidden_layers=2",),
    ),
}

ALONE = "electra"
"""Whose loss is a generator's and 50 times a discriminator's."""


def trained(name: str, corpora: list[Path], root: Path, steps: int) -> Path:
    """Trains a run to its end, from wherever it stands; its folder."""
    folder, note = root / name, root / name / "cpu_seconds.json"
    if note.exists():
        return folder
    run = RUNS[name]
    paths = ",".join(str(path.resolve()) for path in corpora)
    before = time.monotonic()
    children = os.times()
    subprocess.run(
        [
            *(sys.executable, "-m", "lsp", "train", f"run_name={name}", *COMMON),
            *(f"architecture.model_type={name}", *run.words),
            f"trainer.max_steps={steps}",
            f"schedule.warmup_steps={steps // 10}",
            f"trainer.eval_every={max(1, steps // 3)}",
            f"data.paths=[{paths}]",
            f"data.cache_root={root / 'prepared'}",
            f"checkpoint.root={root}",
        ],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= children.children_user + children.children_system
    note.write_text(json.dumps({"cpu_seconds": cpu, "seconds": time.monotonic() - before}))
    return folder


def losses_of(folder: Path) -> list[tuple[int, float]]:
    """Steps and losses that were logged."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]


def validation_of(folder: Path) -> list[float]:
    """Losses on text that was held out, as they were measured."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["validation_loss"] for row in rows if row.get("validation_loss") is not None]


def smoothed(losses: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Steps, and the mean of each loss and those before it."""
    values = [loss for _, loss in losses]
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - SMOOTHED) : end]
        means.append(sum(window) / len(window))
    return [step for step, _ in losses], means


def row_of(name: str, folder: Path) -> dict[str, Any]:
    """A row of the table."""
    steps, means = smoothed(losses_of(folder))
    held_out = validation_of(folder)
    seconds = json.loads((folder / "cpu_seconds.json").read_text())["cpu_seconds"]
    return {
        "architecture": name,
        "objective": RUNS[name].objective,
        "parameters": parameters_of(folder),
        "steps": f"{steps[-1]} of {ROWS} x {RUNS[name].length} tokens",
        "first loss": f"{losses_of(folder)[0][1]:.3f}",
        "last losses": f"{means[-1]:.3f}",
        "held-out loss": f"{held_out[-1]:.3f}" if held_out else "",
        "CPU-seconds": f"{seconds:,.0f}",
    }


def parameters_of(folder: Path) -> str:
    """How many, from the newest checkpoint; what is tied once."""
    weights = read_weights(CheckpointStore(folder).find("latest"))
    sizes = {
        fingerprint(weight) if weight.dim() > 1 else name: weight.numel()
        for name, weight in weights.items()
    }
    return f"{sum(sizes.values()):,}"


def plot(folders: dict[str, Path], path: Path) -> None:
    """All curves in one picture; a loss that adds up unlike others has a scale of its own."""
    figure, (left, right) = plt.subplots(ncols=2, width_ratios=(2, 1), figsize=(10, 5))
    for number, (name, folder) in enumerate(folders.items()):
        axes, losses = right if name == ALONE else left, losses_of(folder)
        steps, means = smoothed(losses)
        color = f"C{number}"
        axes.plot(steps, means, color=color, label=f"{name}, {RUNS[name].objective}")
        axes.plot(steps, [loss for _, loss in losses], color=color, alpha=0.2)
    left.axhline(math.log(VOCABULARY), color="grey", linestyle=":", label="all tokens alike")
    left.set_ylabel("loss (nats for each predicted token)")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.suptitle("Each with the objective of its paper")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="plain text")
    parser.add_argument("--root", type=Path, default=Path("checkpoints/catalog_training"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--save", action="store_true", help=f"write into {RESULTS}")
    arguments = parser.parse_args()
    folders = {
        name: trained(name, arguments.corpus, arguments.root, arguments.steps)
        for name in arguments.only
    }
    print(text := table([row_of(name, folder) for name, folder in folders.items()]))
    if arguments.save:
        plot(folders, RESULTS / "catalog_training.png")
        names = " and ".join(path.name for path in arguments.corpus)
        told = (
            f"{text}\n\nOn {names}. The last losses are a mean of {SMOOTHED} steps; with all of "
            f"{VOCABULARY:,} tokens alike it would be {math.log(VOCABULARY):.3f}. Losses are of "
            "different things: ELECTRA's is that of its generator and 50 times that of its "
            "discriminator.\n\n![Loss by step](catalog_training.png)"
        )
        save("catalog_training", "Six architectures on real text", told, stamp("transformers"))


if __name__ == "__main__":
    main()
