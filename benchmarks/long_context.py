"""Whether long context is used: three architectures and a dense one, trained on one long book.

    python benchmarks/long_context.py --corpus war_and_peace.txt [--only reformer] [--save]

Each is trained by `lsp train` on as many tokens, with about as many weights, as its paper trains
it: the Transformer-XL on short rows with a memory, the others in phases of growing rows
(2004.05150, section 4.2). `lsp evaluate` then measures bits per byte of the same text when a model
is shown only so much of what precedes it. A run that is there already is not trained again, and one
that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks._common import RESULTS, save, stamp, table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHORTEST, LONGEST = 32, 2048
"""Tokens of the windows that the evaluation shows a model."""

POSITIONS = 512
"""Tokens of the longest rows of models whose positions are absolute. Longer ones can be shown, but
each position is learnt from the rows that have it: a Longformer whose last phase, two sevenths of
the budget, had rows of 2,048 was at 2.74 bits per byte with windows of 256 and at 2.99 with 2,048.
"""

READ = 122_880
"""Bytes that are evaluated, the first of the held-out part."""

COMMON = [
    "data=text",
    "tokenizer=bytes",
    "packing=concatenate",
    "memory=stored",
    "schedule=constant",
    "schedule.warmup_steps=100",
    "optimizer.learning_rate=1e-3",
    "trainer.eval_every=0",
    "trainer.log_every=50",
    "checkpoint.every=500",
    "checkpoint.keep_last=1",
]

# Steps, tokens of a row, tokens of a step, factor of the learning rate, window of the Longformer.
# Absolute positions are learnt on short rows: on rows of 2,048 alone a Reformer and a Longformer
# knew, a million tokens later, little more than pairs of letters.
STAGES = [
    (768, 128, 1024, 1.0, 64),
    (512, POSITIONS, 2048, 0.5, 128),
]
TOKENS = sum(steps * tokens for steps, _, tokens, _, _ in STAGES)


def phases(windows: str = "") -> str:
    """The stages as an override; `windows` is `sliding`, `dense` (over the whole row) or empty."""
    written = []
    for number, (steps, length, tokens, factor, window) in enumerate(STAGES):
        keys = f"steps: {steps}, sequence_length: {length}, tokens_per_step: {tokens}"
        keys += f", learning_rate: {factor}, warmup_steps: {10 if number else 100}"
        if windows:
            keys += f", attention_window: {window if windows == 'sliding' else length}"
        written.append(f"{{{keys}}}")
    return f"phases=[{', '.join(written)}]"


LONGFORMER = [
    "architecture=longformer",
    "architecture.hidden_size=128",
    "architecture.intermediate_size=512",
    "architecture.num_hidden_layers=4",
]

TRANSFORMER_XL = [
    "architecture=transformer_xl",
    "architecture.d_model=128",
    "architecture.d_embed=128",
    "architecture.d_inner=640",
    "architecture.d_head=32",
    "architecture.n_layer=4",
    "architecture.mem_len=384",
    "sequence_length=128",
    "tokens_per_step=1024",
    f"trainer.max_steps={TOKENS // 1024}",
]

RUNS = {
    "Reformer": [
        "architecture=reformer",
        "architecture.hidden_size=128",
        "architecture.attention_head_size=32",
        "architecture.feed_forward_size=512",
        "architecture.axial_pos_embds=false",  # a grid has one length of rows in training
        "architecture.attn_layers=[local,lsh,local,lsh]",
        "architecture.num_hashes=2",
        phases(),
    ],
    "Longformer": [*LONGFORMER, phases("sliding")],
    "Transformer-XL": TRANSFORMER_XL,
    # The control: the same but for its positions, which are added to the tokens (1706.03762).
    "Transformer-XL, absolute": [*TRANSFORMER_XL, "architecture.attn_type=2"],
    # A window over the whole row is attention to everything before.
    "dense": [*LONGFORMER, phases("dense")],
}


EXPLANATION = """

Bits per byte of the same held-out text (its first 122,880 bytes; what the longest window needs
before it is not predicted), each byte predicted from the second half of a window of so many bytes.

Whether context helps follows from how positions are told, not from what attention could reach. The
Transformer-XL gains from every doubling up to 256 bytes and a little to 512, about as far as its
memory of 384. The control differs from it in `attn_type` alone: positions that are added to the
tokens, instead of distances between them; it gains less, stops at 128, the length of its rows, and
stays 0.4 bits behind. The Reformer, the Longformer and the dense model have a learnt vector for
each position, and each is learnt from the rows that have it: at this budget they know what is near
(their curves are flat beyond 64 bytes), in the window of a Longformer as well as with attention to
everything. On rows of 2,048 from the start a Reformer and a Longformer hardly passed the entropy
of a byte given the one before it (3.46); so they begin with rows of 128."""


def lsp(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "lsp", *words], check=True)


def measured(name: str, corpus: Path, root: Path) -> dict[str, Any]:
    """Trains a run to its end, from wherever it stands, and evaluates it."""
    folder = root / name.lower().replace(", ", "-")
    result = folder / "evaluation.json"
    if not result.exists():
        lsp(
            *("train", f"run_name={folder.name}", *COMMON, *RUNS[name]),
            f"data.paths=[{corpus.resolve()}]",
            f"data.cache_root={root / 'prepared'}",
            f"checkpoint.root={root}",
        )
        remembers = name.startswith("Transformer-XL")
        length, longest = (128, LONGEST) if remembers else (POSITIONS, POSITIONS)
        lsp(
            *(
                "evaluate",
                f"run={folder}",
                f"rows={READ // length}",
                f"report_rows={READ // length}",
            ),
            *(f"context_shortest={SHORTEST}", f"context_longest={longest}"),
        )
    return json.loads(result.read_text())


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Bits per byte by context length, all in one picture."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, result in results.items():
        rows = result["by_context"]
        lengths = [row["context"] for row in rows]
        axes.plot(lengths, [row["bits_per_byte"] for row in rows], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("context (bytes)")
    axes.set_ylabel("bits per byte")
    axes.set_title(f"War and Peace, {TOKENS:,} bytes of training")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="one long text")
    parser.add_argument("--root", type=Path, default=Path("checkpoints/long_context"))
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--save", action="store_true", help=f"write into {RESULTS}")
    arguments = parser.parse_args()
    results = {name: measured(name, arguments.corpus, arguments.root) for name in arguments.only}
    lengths = sorted({row["context"] for r in results.values() for row in r["by_context"]})
    rows = []
    for name, result in results.items():
        found = {row["context"]: f"{row['bits_per_byte']:.3f}" for row in result["by_context"]}
        rows.append({"model": name} | {f"{length:,}": found.get(length, "") for length in lengths})
    print(text := table(rows))
    if arguments.save:
        plot(results, RESULTS / "long_context.png")
        save("long_context", "Bits per byte by context length", text + EXPLANATION, stamp())


if __name__ == "__main__":
    main()
