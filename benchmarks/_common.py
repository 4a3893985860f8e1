"""What every benchmark shares: the stamp of where it ran, fair timing, tables."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The processor's name and the number of its cores that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.get_num_threads()} thread(s)"


def commit() -> str:
    """The commit that ran, marked where the working tree differed from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../lsp", ".")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def stamp(*packages: str) -> dict[str, str]:
    """Hardware, versions and commit, to be kept with every figure."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": processor(),
        "accelerator": accelerator,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", *packages)},
        "commit": commit(),
    }


def side_by_side(steps: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median CPU-seconds of each step, taken in turns so that a busy machine disturbs all alike."""
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


class MatrixProducts(TorchDispatchMode):
    """Collects the shapes of a computation's matrix products, to time them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, int, int, int, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        factors = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "baddbmm_": 1}
        if name in factors:
            left, right = args[factors[name] : factors[name] + 2]
            batch = left.shape[0] if left.dim() == 3 else 1
            shape = (batch, left.shape[-2], left.shape[-1], right.shape[-1], left.dtype)
            self.shapes[shape] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self) -> float:
        """CPU-seconds of the products alone, each shape's best of three in a warm cache."""
        total = 0.0
        for (batch, rows, inner, columns, dtype), count in self.shapes.items():
            left = torch.randn(batch, rows, inner).to(dtype)
            right = torch.randn(batch, inner, columns).to(dtype)
            out = torch.empty(batch, rows, columns, dtype=dtype)
            torch.bmm(left, right, out=out)
            best = float("inf")
            for _ in range(3):
                start = time.process_time()
                torch.bmm(left, right, out=out)
                best = min(best, time.process_time() - start)
            total += best * count
        return total


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table."""
    columns = list(rows[0])
    cells = [columns] + [[str(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def save(name: str, title: str, text: str, stamped: dict[str, str]) -> Path:
    """Writes `benchmarks/results/<name>.md`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.md"
    where = "\n".join(f"- {key}: {value}" for key, value in stamped.items())
    path.write_text(f"# {title}\n\n{text}\n\nMeasured on:\n\n{where}\n")
    return path
