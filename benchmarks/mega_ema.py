"""Mega's moving averages block by block beside a Fourier transform of the row.

python benchmarks/mega_ema.py                     # 4K, 16K and 64K positions
python benchmarks/mega_ema.py --lengths 4096      # one length; --repeats 3

Each length is measured in two fresh processes: one takes CPU-seconds, forward and backward of both
in turns, so that a busy machine disturbs both alike; peaks are taken in one process for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from _common import save, side_by_side, stamp, table
from reformer_memory import MEGABYTE, Sampler, resident_bytes

from lsp.models.layers.moving_average import moving_average

WIDTH, AVERAGES = 256, 16
LENGTHS = (4096, 16384, 65536)
NAMES = {"blocks": "block by block", "fourier": "Fourier transform"}


def fourier(
    x_BLD: torch.Tensor, log_decay_SDN: torch.Tensor, weight_SDN: torch.Tensor
) -> torch.Tensor:
    """The same averages as one convolution with a kernel as long as the row."""
    length = x_BLD.shape[1]
    place_L = torch.arange(length, dtype=x_BLD.dtype)
    kernel_DL = torch.einsum(
        "dnl,dn->dl", torch.exp(log_decay_SDN[0, ..., None] * place_L), weight_SDN[0]
    )
    spectrum = torch.fft.rfft(x_BLD.transpose(1, 2), n=2 * length)
    spectrum = spectrum * torch.fft.rfft(kernel_DL, n=2 * length)
    out_BDL: torch.Tensor = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    return out_BDL.transpose(1, 2)


def passes(length: int) -> dict[str, Callable[[], torch.Tensor]]:
    """A forward and backward pass of each."""
    torch.manual_seed(0)
    x_BLD = torch.randn(1, length, WIDTH, requires_grad=True)
    log_decay = torch.empty(1, WIDTH, AVERAGES).uniform_(-0.5, -0.01).requires_grad_()
    weight = torch.randn(1, WIDTH, AVERAGES, requires_grad=True)
    grad_BLD = torch.randn(1, length, WIDTH)
    leaves = [x_BLD, log_decay, weight]

    def step(average: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            y_BLD = average()
            torch.autograd.grad(y_BLD, leaves, grad_BLD)
            return y_BLD.detach()

        return run

    return {
        "blocks": step(lambda: moving_average(x_BLD, log_decay, weight, None)),
        "fourier": step(lambda: fourier(x_BLD, log_decay, weight)),
    }


def measure(what: str, length: int, repeats: int) -> dict[str, float]:
    """CPU-seconds of both, or peak megabytes of one, in this process."""
    torch.set_num_threads(1)
    steps = passes(length)
    if what == "seconds":
        blocks, transform = (steps[name]() for name in NAMES)
        error = float((blocks - transform).abs().max() / transform.abs().max())
        return {**side_by_side(steps, repeats), "difference": error}
    small = passes(128)[what]
    small()  # libraries load what they need
    start = resident_bytes()
    with Sampler() as sampler:
        steps[what]()
    return {"megabytes": (sampler.peak - start) / MEGABYTE}


def in_a_fresh_process(what: str, length: int, repeats: int) -> dict[str, float]:
    """What `measure` gives there."""
    words = ["--measure", what, "--lengths", str(length), "--repeats", str(repeats)]
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", help="what one process measures; for internal use")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.lengths[0], options.repeats)))
        return
    rows: list[dict[str, Any]] = []
    for length in options.lengths:
        seconds = in_a_fresh_process("seconds", length, options.repeats)
        for name, title in NAMES.items():
            peak = in_a_fresh_process(name, length, 1)["megabytes"]
            rows.append(
                {
                    "positions": f"{length:,}",
                    "averages": title,
                    "CPU-seconds": f"{seconds[name]:.2f}",
                    "us per position": f"{1e6 * seconds[name] / length:.1f}",
                    "peak MB": f"{peak:.0f}",
                    "bytes per number": f"{MEGABYTE * peak / length / WIDTH:.0f}",
                    "difference": f"{seconds['difference']:.0e}" if name == "blocks" else "",
                }
            )
            print(rows[-1], flush=True)
    text = (
        f"Forward and backward of {AVERAGES} averages of each of {WIDTH} features, one row, fp32, "
        f"one thread; medians of {options.repeats} in turns, and peaks of resident memory above "
        "what was there before, in fresh processes. The difference is the largest of a value, "
        "relative to the largest value. A row with documents costs the blocks one more for each "
        "document; the Fourier transform cannot tell documents apart.\n\n" + table(rows)
    )
    # Others at work on the machine do not change CPU-seconds much, but their caches do.
    busy = {"load average at the end": f"{os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"}
    print(save("mega_ema", "Moving averages of Mega", text, stamp() | busy))


if __name__ == "__main__":
    main()
