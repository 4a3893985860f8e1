"""For how long a checkpoint holds training: written while it waits, and while it goes on.

python benchmarks/checkpoint_stall.py                    # every row of the table below
python benchmarks/checkpoint_stall.py --only zero3       # single | ddp | zero2 | zero3
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import save, stamp, table

STRATEGIES = {"single": 1, "ddp": 2, "zero2": 2, "zero3": 2}
EVERY, STEPS = 5, 21

MODEL = {
    "hidden_size": 512,
    "feed_forward_size": 2048,
    "num_attention_heads": 8,
    "attention_head_size": 64,
    "attn_layers": "[local,lsh,local,lsh,local,lsh,local,lsh]",
}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def train(folder: Path, strategy: str, *, asynchronous: bool) -> dict[str, Any]:
    """Trains some steps in processes of their own; what was logged, and the checkpoint's size."""
    processes, name = STRATEGIES[strategy], f"{strategy}-{asynchronous}"
    launcher = [sys.executable, "-m", "lsp"]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        launcher += [f"--master-port={free_port()}", "-m", "lsp"]
    words = ["experiment=debug", f"run_name={name}", f"checkpoint.root={folder}"]
    words += [f"data.cache_root={folder / 'prepared'}", f"trainer.max_steps={STEPS}"]
    words += ["trainer.eval_every=0", "trainer.eval_rows=2", "trainer.sample_tokens=0"]
    words += ["parallelism.device=cpu", f"parallelism={strategy}", "checkpoint.keep_last=1"]
    words += [f"checkpoint.every={EVERY}", f"checkpoint.asynchronous={str(asynchronous).lower()}"]
    words += [f"architecture.{key}={value}" for key, value in MODEL.items()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "train", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").open()]
    (checkpoint,) = (folder / name).glob("step-*")
    return {
        "rows": [row for row in rows if "loss" in row],
        "written": [float(s) for s in re.findall(r"saved \S+ in ([\d.]+) s", done.stderr)],
        "bytes": sum(path.stat().st_size for path in checkpoint.iterdir()),
    }


def summary(strategy: str, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: medians over the saves amid training, and over the steps."""
    rows = found["rows"]
    stalls = [row["save_stall_seconds"] for row in rows if row["save_stall_seconds"] is not None]
    times = {
        row["step"]: row["seconds"] - before["seconds"] for before, row in itertools.pairwise(rows)
    }
    beside = [seconds for step, seconds in times.items() if step % EVERY == 1]
    alone = [seconds for step, seconds in times.items() if step % EVERY not in (1, 2)]
    return {
        "strategy": f"{strategy} x {STRATEGIES[strategy]}",
        "checkpoint": f"{found['bytes'] / 2**20:.0f} MiB",
        "training held per save": f"{statistics.median(stalls):.2f} s",
        "until it is on disk": f"{statistics.median(found['written'][:-1]):.2f} s",
        "the step after a save": f"{statistics.median(beside):.2f} s",
        "other steps": f"{statistics.median(alone):.2f} s",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=STRATEGIES)
    only = parser.parse_args().only
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for strategy in [only] if only else STRATEGIES:
            for asynchronous in (False, True):
                found = train(Path(folder), strategy, asynchronous=asynchronous)
                line = summary(strategy, found)
                how = {"written": "beside training" if asynchronous else "while it waits"}
                lines.append({"strategy": line.pop("strategy")} | how | line)
                print(lines[-1], flush=True)
    load = f"{os.getloadavg()[1]:.0f} on {os.cpu_count()} cores"
    text = f"""`python benchmarks/checkpoint_stall.py`: a Reformer of 8 layers, hidden 512, fp32,
AdamW, on the CPU with gloo, {STEPS} steps. Medians over the saves at steps {EVERY}, {2 * EVERY}, …

{table(lines)}

`while it waits` is `checkpoint.asynchronous=false`. Beside training, it is held for the gathering
(ZeRO) and the copy to host memory, of which each process takes its share. Writing, flushing and
checksums are left to threads, which on a CPU take their time from the step after the save. Seconds
are of the clock, on a machine whose load average was {load} at the end: the two lines of a strategy
may be compared, strategies and steps hardly."""
    if not only:
        save("checkpoint_stall", "What a checkpoint costs training", text, stamp("deepspeed"))


if __name__ == "__main__":
    main()
