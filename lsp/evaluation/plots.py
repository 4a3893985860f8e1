"""The pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[dict[str, Any]]


def plot_reports(result: dict[str, Any], out: Path) -> list[Path]:
    """Draws what a result has.

    Args:
        result: As `lsp evaluate` writes it.
        out: Its file; pictures lie beside it, named after it and what they show.

    Returns:
        The PNG files.
    """
    written = []
    for name, draw in _DRAWN.items():
        if result.get(name):
            path = out.with_name(f"{out.stem}_{name}.png")
            _save(draw, result[name], path)
            written.append(path)
    return written


def _save(draw: Callable[[Any, Rows], None], rows: Rows, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    draw(axes, rows)
    aside = out.with_suffix(".aside.png")
    figure.savefig(aside, dpi=120)
    plt.close(figure)
    aside.replace(out)


def _measure(rows: Rows) -> tuple[str, str]:
    """What is drawn upwards, and its name: bits per byte where a loss has any."""
    if rows[0]["bits_per_byte"] is not None:
        return "bits_per_byte", "bits per byte"
    return "loss", "loss (nats per token)"


def _curve(axes: Any, rows: Rows, at: Sequence[float], across: str, base: int | None = 2) -> None:
    key, label = _measure(rows)
    axes.plot(at, [row[key] for row in rows], marker="o", markersize=4, linewidth=1.2)
    if base and min(at) > 0:
        axes.set_xscale("log", base=base)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)


def _position(axes: Any, rows: Rows) -> None:
    middles = [(row["from"] + row["to"] + 1) / 2 for row in rows]
    _curve(axes, rows, middles, "position in the document (middle of a range)")


def _context(axes: Any, rows: Rows) -> None:
    lengths = [row["context"] for row in rows]
    _curve(axes, rows, lengths, "context length (a token sees half of it or more)")


def _sliding(axes: Any, rows: Rows) -> None:
    if "memory" in rows[0]:
        _curve(axes, rows, [row["memory"] for row in rows], "tokens remembered")
    else:
        contexts = [row["context"] for row in rows]
        _curve(axes, rows, contexts, "least context of a token", base=None)


def _passkey(axes: Any, rows: Rows) -> None:
    """Shades are likelihood against distractors; numbers the keys that were named."""
    lengths = sorted({row["length"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    nothing = float("nan")
    shades = [[nothing] * len(lengths) for _ in depths]
    for row in rows:
        x, y = lengths.index(row["length"]), depths.index(row["depth"])
        shades[y][x] = row["likeliest"]
        axes.text(x, y, f"{row['accuracy']:.0%}", ha="center", va="center", color="black")
    image = axes.imshow(shades, vmin=0, vmax=1, cmap="YlGn", aspect="auto")
    axes.figure.colorbar(image, label="likelier than every distractor")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel("length of the text")
    axes.set_ylabel("depth of the pass key (in the cells: keys named)")


_DRAWN: dict[str, Callable[[Any, Rows], None]] = {
    "by_position": _position,
    "by_context": _context,
    "passkey": _passkey,
    "sliding": _sliding,
}
