"""Peak memory of a training step of the Reformer, each figure in a fresh process.

python benchmarks/reformer_memory.py                # every figure of the table below
python benchmarks/reformer_memory.py --only depth   # depth | transformers | 64k | 256k
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MEGABYTE = 2**20


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """A training step of the model of `spec` in this process."""
    import torch

    torch.set_num_threads(spec.get("threads", 1))
    torch.manual_seed(0)
    config, length = spec["config"], spec["length"]
    ids = torch.randint(0, config["vocab_size"], (1, length))
    labels = ids.roll(-1, dims=1)
    if spec["library"] == "transformers":
        import transformers

        model = transformers.ReformerModelWithLMHead(transformers.ReformerConfig(**config)).train()

        def loss_of_step() -> torch.Tensor:
            logits = model(ids).logits
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    else:
        from lsp.models.memory import MemoryConfig
        from lsp.models.reformer import Reformer
        from lsp.models.reformer_config import ReformerConfig

        ours = Reformer(ReformerConfig(**config), MemoryConfig(**spec.get("memory", {}))).train()
        model = ours

        def loss_of_step() -> torch.Tensor:
            ours.begin_micro_batch(1)
            loss, count = ours(ids, labels)
            return loss / count

    return measure_step(model, loss_of_step)


def measure_step(model: torch.nn.Module, loss_of_step: Callable[[], Any]) -> dict[str, Any]:
    """What a training step takes in this process.

    The peak is taken from a sampler during the step, with gradients and optimizer state in place,
    and as the process's maximum for the whole.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    parameters = sum(p.numel() for p in model.parameters())
    for parameter in model.parameters():  # gradients and optimizer state exist from here on
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    start, sampler = resident_bytes(), Sampler()
    began, cpu = time.perf_counter(), time.process_time()
    with sampler:
        loss = loss_of_step()
        loss.backward()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    optimizer.step()
    return {
        "parameters": parameters,
        "state_bytes": 16 * parameters,
        "start_bytes": start,
        "activation_bytes": sampler.peak - start,
        "process_bytes": peak_bytes(),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "loss": float(loss.detach()),
    }


class Sampler:
    """Highest resident memory while it is entered."""

    def __enter__(self) -> Sampler:
        self.peak, self._stop = resident_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def run_fresh(spec: dict[str, Any], script: str = __file__) -> dict[str, Any]:
    """`measure` of a script in a process of its own."""
    command = [sys.executable, script, "--measure", json.dumps(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(spec.get("threads", 1))}
    out = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if out.returncode != 0:
        raise RuntimeError(out.stderr[-2000:])
    return json.loads(out.stdout.splitlines()[-1])


def depth_spec(layers: int, **changes: Any) -> dict[str, Any]:
    """Hidden 256, 16,384 tokens, alternating local and LSH layers."""
    config = {
        "attn_layers": ["local", "lsh"] * (layers // 2),
        "hidden_size": 256,
        "is_decoder": True,
        "axial_pos_shape": [128, 128],
        "axial_pos_embds_dim": [64, 192],
        "max_position_embeddings": 16384,
        "vocab_size": 320,
    }
    return {"library": "lsp", "length": 16384, "config": config, **changes}


def long_spec(length: int, **changes: Any) -> dict[str, Any]:
    """Hidden 512, 12 alternating layers of 8 heads, feed-forward 2,048."""
    side = 1 << (length.bit_length() // 2)
    config = {
        "attn_layers": ["local", "lsh"] * 6,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "feed_forward_size": 2048,
        "is_decoder": True,
        "axial_pos_shape": [length // side, side],
        "axial_pos_embds_dim": [128, 384],
        "max_position_embeddings": length,
        "vocab_size": 320,
    }
    return {"library": "lsp", "length": length, "config": config, **changes}


def show(name: str, result: dict[str, Any]) -> None:
    print(
        f"{name:<44} process {result['process_bytes'] / MEGABYTE:8.0f} MiB   "
        f"activations {result['activation_bytes'] / MEGABYTE:8.0f} MiB   "
        f"step {result['cpu_seconds']:7.1f} CPU-s",
        flush=True,
    )


def depth() -> None:
    shallow, deep = run_fresh(depth_spec(2)), run_fresh(depth_spec(12))
    show("16,384 tokens, hidden 256, 2 layers", shallow)
    show("16,384 tokens, hidden 256, 12 layers", deep)
    growth = deep["activation_bytes"] / shallow["activation_bytes"] - 1
    print(f"  ten more layers add {growth:+.1%} to the activations (goal: at most +5%)")


def against_transformers() -> None:
    ours, theirs = run_fresh(depth_spec(6)), run_fresh(depth_spec(6, library="transformers"))
    show("16,384 tokens, hidden 256, 6 layers", ours)
    show("  the same in transformers", theirs)
    share = theirs["activation_bytes"] / ours["activation_bytes"]
    print(f"  transformers takes {share:.1f} times the activations (goal: at least 8)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["depth", "transformers", "64k", "256k"])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure))))
        return
    import torch

    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread")
    figures = {
        "depth": depth,
        "transformers": against_transformers,
        "64k": lambda: show("65,536 tokens, hidden 512, 12 layers", run_fresh(long_spec(65536))),
        "256k": lambda: show("262,144 tokens, hidden 512, 12 layers", run_fresh(long_spec(262144))),
    }
    for name, figure in figures.items():
        if arguments.only in (None, name):
            figure()


if __name__ == "__main__":
    main()
