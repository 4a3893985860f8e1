"""CPU-seconds and peak memory of our Transformer-XL beside those of `transformers` 4.37.2.

That release is the last whose Transformer-XL runs with a current torch. It is installed into an
environment of its own, which shares the torch of this one.

python benchmarks/transformer_xl_vs_transformers.py            # both tables, some minutes
python benchmarks/transformer_xl_vs_transformers.py --quick    # the smallest shape, no memory
python benchmarks/transformer_xl_vs_transformers.py --only memory
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import save, stamp, table
from reformer_memory import MEGABYTE, measure_step

RELEASE = ("transformers==4.37.2", "tokenizers==0.15.2", "huggingface_hub==0.36.2")
LIBRARIES = ("transformers", "lsp", "lsp_stored")
# Rows, their tokens, and what is remembered before them.
SHAPES = [(8, 512, 512), (1, 2048, 2048)]
QUICK = SHAPES[:1]
REPEATS, PROCESSES = 3, 1
BASE = {
    "adaptive": True, "clamp_len": -1, "cutoffs": [], "d_embed": 256, "d_head": 64,
    "d_inner": 1024, "d_model": 256, "div_val": 1, "dropatt": 0.0, "dropout": 0.0, "n_head": 4,
    "n_layer": 2, "same_length": False, "vocab_size": 320,
}  # fmt: skip
ADAPTIVE = {"cutoffs": [2000, 8000], "div_val": 2, "vocab_size": 20000}
# 16,384 tokens: as rows of a micro-batch, and as a row and the memory that it sees.
MEMORY_CASES: list[tuple[int, int, int, dict[str, Any]]] = [
    (32, 512, 512, {}),
    (32, 512, 512, ADAPTIVE),
    (1, 4096, 12288, {"n_head": 2, "n_layer": 1}),
]
Step = Callable[[], Any]


def environment() -> str:
    """The interpreter that has the old release; made where it is not there yet."""
    folder = Path(tempfile.gettempdir()) / "lsp-benchmark-transformers-4.37.2"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-deps", *RELEASE], check=True
        )
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        # What comes first on the path is its own: only the rest is shared.
        (Path(own) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / "complete").touch()
    return str(python)


def model_and_loss(spec: dict[str, Any]) -> tuple[torch.nn.Module, Step]:
    """A model in training, and the loss of rows with a memory before them."""
    values, rows, length = spec["config"], spec["rows"], spec["length"]
    torch.manual_seed(0)
    ids = torch.randint(0, values["vocab_size"], (rows, length))
    dtype = getattr(torch, spec["dtype"])
    if spec["library"] == "transformers":
        from transformers import TransfoXLConfig, TransfoXLLMHeadModel

        theirs = TransfoXLLMHeadModel(TransfoXLConfig(**values)).to(dtype).train()
        width, layers = values["d_model"], values["n_layer"]
        before = [torch.randn(values["mem_len"], rows, width).to(dtype) for _ in range(layers)]
        return theirs, lambda: theirs(ids, mems=before, labels=ids).loss
    from lsp.models.memory import MemoryConfig
    from lsp.models.transformer_xl import TransformerXL
    from lsp.models.transformer_xl_config import TransformerXLConfig

    residual = "stored" if spec["library"] == "lsp_stored" else "auto"
    ours = TransformerXL(TransformerXLConfig.from_dict(values), MemoryConfig(residual))
    ours = ours.to(dtype).train()
    labels = torch.cat([ids[:, 1:], ids.new_full((rows, 1), -100)], dim=1)
    ours.eval()
    with torch.no_grad():
        ours(ids, labels)
    memory = ours.remembered()
    ours.train()

    def loss() -> torch.Tensor:
        ours.begin_micro_batch(1)
        ours.recall(memory)
        total, count = ours(ids, labels)
        return total / count

    return ours, loss


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """What training steps take in this process."""
    torch.set_num_threads(1)
    model, loss = model_and_loss(spec)
    if spec["what"] == "memory":
        return measure_step(model, loss)
    taken = []
    for _ in range(REPEATS + 1):
        start = time.process_time()
        loss().backward()
        taken.append(time.process_time() - start)
    return {"seconds": taken[1:]}


def in_fresh_process(spec: dict[str, Any], old: str) -> dict[str, Any]:
    python = old if spec["library"] == "transformers" else sys.executable
    out = subprocess.run(
        [python, __file__, "--measure", json.dumps(spec)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if out.returncode != 0:
        raise RuntimeError(out.stderr[-2000:])
    return json.loads(out.stdout.splitlines()[-1])


def spec_of(
    library: str, what: str, shape: tuple[int, int, int], dtype: str, changes: dict[str, Any]
) -> dict[str, Any]:
    rows, length, memory = shape
    return {
        "library": library, "what": what, "rows": rows, "length": length, "dtype": dtype,
        "config": BASE | changes | {"mem_len": memory},
    }  # fmt: skip


def time_row(shape: tuple[int, int, int], dtype: str, old: str) -> dict[str, Any]:
    """Median seconds, the libraries taken in turns so that a busy machine disturbs all alike."""
    taken: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for _ in range(PROCESSES):
        for library in LIBRARIES:
            spec = spec_of(library, "time", shape, dtype, {})
            taken[library] += in_fresh_process(spec, old)["seconds"]
    seconds = {library: statistics.median(values) for library, values in taken.items()}
    return {
        "rows": shape[0],
        "length": shape[1],
        "memory": shape[2],
        "dtype": dtype,
        **{f"{library}_s": round(seconds[library], 3) for library in LIBRARIES},
        "ratio": round(seconds["transformers"] / seconds["lsp"], 2),
        "stored_ratio": round(seconds["transformers"] / seconds["lsp_stored"], 2),
    }


def memory_row(case: tuple[int, int, int, dict[str, Any]], old: str) -> dict[str, Any]:
    *shape, changes = case
    found = {}
    for library in LIBRARIES[:2]:
        spec = spec_of(library, "memory", tuple(shape), "float32", changes)
        found[library] = in_fresh_process(spec, old)
    size = {name: result["activation_bytes"] for name, result in found.items()}
    values = BASE | changes
    return {
        "rows": shape[0],
        "length": shape[1],
        "memory": shape[2],
        "heads": values["n_head"],
        "layers": values["n_layer"],
        "vocabulary": values["vocab_size"],
        **{f"{name}_MiB": round(bytes_ / MEGABYTE) for name, bytes_ in size.items()},
        "ratio": round(size["transformers"] / size["lsp"], 1),
        **{f"{name}_s": round(found[name]["cpu_seconds"], 1) for name in found},
    }


def time_text(rows: list[dict[str, Any]]) -> str:
    return f"""\
CPU-seconds of a training step, medians of {REPEATS * PROCESSES} steps in fresh processes.
{BASE["n_layer"]} layers, {BASE["n_head"]} heads of {BASE["d_head"]}, hidden {BASE["d_model"]}, \
inner {BASE["d_inner"]}, vocabulary {BASE["vocab_size"]}, no dropout; `length` tokens in
each of `rows` rows see `memory` remembered ones before them. `ratio` is how many times longer
`transformers` takes; `stored_ratio` the same where our model keeps everything for the backward
pass (`memory=stored`), as `transformers` does, instead of computing it again.

{table(rows)}"""


def memory_text(rows: list[dict[str, Any]]) -> str:
    return f"""\
## Peak memory

A training step on 16,384 tokens, as rows of a micro-batch or as a row and the memory that it sees,
fp32, each in a fresh process: `MiB` is the peak beyond what the process held before it, with
weights, gradients and AdamW's state in place; `s` the CPU-seconds of that first step. The larger
vocabulary is clustered: {", ".join(f"`{key}={value}`" for key, value in ADAPTIVE.items())}.

{table(rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["time", "memory"])
    parser.add_argument("--quick", action="store_true", help="the smallest shape, no memory")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure))))
        return
    torch.set_num_threads(1)
    old, parts = environment(), []
    if arguments.only != "memory":
        rows = []
        for shape in QUICK if arguments.quick else SHAPES:
            for dtype in ("float32", "bfloat16"):
                rows.append(time_row(shape, dtype, old))
                print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
        parts.append(time_text(rows))
    if arguments.only != "time" and not arguments.quick:
        rows = []
        for case in MEMORY_CASES:
            rows.append(memory_row(case, old))
            print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
        parts.append(memory_text(rows))
    stamped = stamp() | {"transformers": "4.37.2"}
    text = "\n\n".join(parts)
    print("\n" + text + "\n\n" + "\n".join(f"{key}: {value}" for key, value in stamped.items()))
    if arguments.save:
        name = "transformer_xl_vs_transformers"
        print(save(name, "Transformer-XL beside transformers", text, stamped))


if __name__ == "__main__":
    main()
