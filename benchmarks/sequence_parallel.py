"""What sharing the positions of a row between processes saves, and what it sends.

python benchmarks/sequence_parallel.py            # prints both tables
python benchmarks/sequence_parallel.py --save     # and writes benchmarks/results/

Each figure comes from fresh processes that talk over gloo. "By heads" forces the all-to-all of
DeepSpeed Ulysses on local attention too, where a halo of neighbouring chunks suffices.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _common import save, stamp, table
from reformer_memory import MEGABYTE, Sampler, depth_spec, resident_bytes

from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from lsp.parallel.config import ParallelismConfig
from lsp.parallel.runtime import runtime

LENGTH = 16384


@dataclass(frozen=True)
class Job:
    """A step of a model under a degree of sequence parallelism."""

    layers: tuple[str, ...]
    degree: int
    halo: bool = True
    hidden: int = 256


class Traffic:
    """Bytes that this process sends to others in all-to-alls, while it is entered."""

    def __enter__(self) -> Traffic:
        self.sent, self._original = 0, dist.all_to_all_single

        def counting(
            out: torch.Tensor,
            given: torch.Tensor,
            receive: list[int] | None = None,
            send: list[int] | None = None,
            group: Any = None,
        ) -> Any:
            own, members = dist.get_rank(group), dist.get_world_size(group)
            kept = send[own] if send is not None else given.numel() // members
            self.sent += (given.numel() - kept) * given.element_size()
            return self._original(out, given, receive, send, group=group)

        dist.all_to_all_single = counting
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_to_all_single = self._original


def work(rank: int, job: Job, port: int, folder: str) -> None:
    """One process: two steps."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.degree),
        "LOCAL_WORLD_SIZE": str(job.degree),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    if not job.halo:
        ReformerConfig.local_attention_is_near = lambda self, length: False  # type: ignore[method-assign]
    with runtime(ParallelismConfig(strategy="ddp", sequence=job.degree, device="cpu")) as place:
        torch.manual_seed(0)
        config = depth_spec(2)["config"] | {
            "attn_layers": list(job.layers),
            "hidden_size": job.hidden,
            "axial_pos_embds_dim": [job.hidden // 4, job.hidden * 3 // 4],
            "feed_forward_size": 2 * job.hidden,
        }
        model = Reformer(ReformerConfig(**config)).train()
        model.share_rows(place.exchange)
        ids = torch.randint(0, config["vocab_size"], (1, LENGTH))
        here = LENGTH // job.degree
        part = slice(place.exchange.first(here), place.exchange.first(here) + here)
        positions = torch.arange(LENGTH)[None]
        inputs = [x[:, part].contiguous() for x in (ids, ids.roll(-1, 1), torch.ones_like(ids))]

        def step() -> None:
            model.begin_micro_batch(1)
            loss, _ = model(*inputs, position_ids=positions[:, part])
            (loss / LENGTH).backward()

        for parameter in model.parameters():  # gradients exist from here on
            parameter.grad = torch.zeros_like(parameter)
        # Memory from a first step, whose heap is fresh; time and traffic from a second.
        start, sampler = resident_bytes(), Sampler()
        with sampler:
            step()
        began, cpu = time.perf_counter(), time.process_time()
        with Traffic() as traffic:
            step()
        found = {
            "seconds": time.perf_counter() - began,
            "cpu": time.process_time() - cpu,
            "activations": sampler.peak - start,
            "sent": traffic.sent,
        }
    torch.save(found, Path(folder) / f"{rank}.pt")


def measure(job: Job) -> dict[str, float]:
    """The worst of the processes in each figure."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, (job, port, folder), nprocs=job.degree, start_method="spawn")
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(job.degree)]
    return {key: max(process[key] for process in found) for key in found[0]}


def halo_table() -> str:
    """Local attention alone: what a step sends."""
    rows = []
    for degree in (2, 4):
        results = {halo: measure(Job(("local",) * 4, degree, halo=halo)) for halo in (True, False)}
        for halo, found in results.items():
            rows.append(
                {
                    "processes": degree,
                    "local attention": "halo" if halo else "by heads",
                    "sent by a process in a step": f"{found['sent'] / MEGABYTE:.1f} MiB",
                    "times the halo's": f"{found['sent'] / results[True]['sent']:.1f}",
                    "CPU-seconds of a process": f"{found['cpu']:.2f}",
                }
            )
    return table(rows)


def degree_table() -> str:
    """Local and LSH layers in turns: what a process holds and does."""
    rows = []
    for degree in (1, 2, 4):
        found = measure(Job(("local", "lsh"), degree, hidden=1024))
        rows.append(
            {
                "processes": degree,
                "activations of a process": f"{found['activations'] / MEGABYTE:.0f} MiB",
                "sent by a process in a step": f"{found['sent'] / MEGABYTE:.1f} MiB",
                "CPU-seconds of a process": f"{found['cpu']:.1f}",
            }
        )
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = (
        f"`python benchmarks/sequence_parallel.py`: Reformer, {LENGTH:,} tokens, 12 heads of 64, "
        "chunks of 64, fp32, one\nthread a process, gloo on one machine. Forward and backward of "
        "one row.\n\n"
        f"Four layers of local attention, hidden 256:\n\n{halo_table()}\n\n"
        f"A local and an LSH layer, hidden 1,024:\n\n{degree_table()}\n\n"
        "The streams are shared; what one head of a whole row takes in LSH attention is not, since "
        "a process computes\none head at a time however many there are."
    )
    print(text)
    if arguments.save:
        print(save("sequence_parallel", "Sharing the positions of a row", text, stamp()))


if __name__ == "__main__":
    main()
