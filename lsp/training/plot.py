"""The loss curve of a run, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_losses(rows: Sequence[dict[str, Any]], out: Path, reference: float | None) -> None:
    """Draws training and validation bits per byte over the steps.

    Args:
        rows: Of `metrics.jsonl`.
        out: PNG file to write.
        reference: Order-0 entropy of the validation text in bits per byte, drawn as a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    byte_wise = any(row.get("bits_per_byte") is not None for row in rows)
    train, validation = (
        ("bits_per_byte", "validation_bits_per_byte") if byte_wise else ("loss", "validation_loss")
    )
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    drawn = 0
    for key, label, marker in ((train, "training", None), (validation, "validation", "o")):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=label, marker=marker, markersize=3, linewidth=1.2)
            drawn += 1
    if byte_wise and reference is not None:
        axes.axhline(reference, color="grey", linestyle="--", linewidth=1, label="order-0 entropy")
    axes.set_xlabel("step")
    axes.set_ylabel("bits per byte" if byte_wise else "loss (nats per token)")
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend()
    aside = out.with_suffix(".aside.png")
    figure.savefig(aside, dpi=120)
    plt.close(figure)
    aside.replace(out)
