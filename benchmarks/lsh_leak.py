"""What a later token does to earlier ones in causal LSH attention, through the sorted order alone.

No weight falls on a later token. But a later token takes a place in the order by buckets, so
replacing it moves others across the borders of chunks, and an earlier query may then see other
earlier keys. This replaces one query-key vector and counts, over queries before it:

- changed: the share of queries whose set of visible earlier keys changes;
- keys: of all keys seen before or after by any query, the share seen only once;
- output: the size of the change of the output, relative to the output (random values).

python benchmarks/lsh_leak.py
"""

from __future__ import annotations

import argparse

import torch
from _common import save, stamp, table

from lsp.models.layers.lsh import (
    automatic_num_buckets,
    hash_buckets,
    lsh_attention,
    sorted_order,
)

CHUNK, SIZE, SAMPLES = 64, 64, 256


def query_keys(kind: str, length: int) -> torch.Tensor:
    """(1, 1, L, H): independent vectors, or vectors around a few directions, as words are."""
    noise = torch.randn(1, 1, length, SIZE)
    if kind == "independent":
        return noise
    centres = torch.randn(256, SIZE)
    return centres[torch.randint(0, 256, (length,))] + 0.5 * noise


def visible(order_RL: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Which earlier keys each query sees in some round: (queries, L) bool."""
    rounds, length = order_RL.shape
    chunks = order_RL.reshape(-1, CHUNK)
    with_previous = torch.cat([chunks.roll(1, dims=0), chunks], dim=1)
    slots = order_RL.argsort(dim=1)[:, queries] + torch.arange(rounds)[:, None] * length
    keys = with_previous[slots // CHUNK].transpose(0, 1).flatten(1)
    seen = torch.zeros(len(queries), length, dtype=torch.bool).scatter_(1, keys, True)
    return seen & (torch.arange(length) < queries[:, None])


def trial(kind: str, length: int, rounds: int, seed: int) -> tuple[float, float, float]:
    torch.manual_seed(seed)
    qk, v = query_keys(kind, length), torch.randn(1, 1, length, SIZE)
    position = int(torch.randint(length // 2, length, ()))
    changed = qk.clone()
    changed[0, 0, position] = query_keys(kind, 1)[0, 0, 0]
    num_buckets = automatic_num_buckets(length, CHUNK, length)
    queries = torch.randperm(position)[:SAMPLES]
    seen, outputs = [], []
    for vectors in (qk, changed):
        buckets = hash_buckets(vectors, num_buckets, rounds, seed=seed)
        seen.append(visible(sorted_order(buckets, None)[0, 0].long(), queries))
        out = lsh_attention(vectors, v, buckets, chunk_length=CHUNK, causal=True)
        outputs.append(out[0, 0, queries])
    differs, either = seen[0] ^ seen[1], seen[0] | seen[1]
    change = (outputs[0] - outputs[1]).norm() / outputs[0].norm()
    return (
        differs.any(1).float().mean().item(),
        (differs.sum() / either.sum()).item(),
        change.item(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    arguments = parser.parse_args()
    rows = []
    for kind in ("independent", "clustered"):
        for length in arguments.lengths:
            for rounds in arguments.rounds:
                trials = [trial(kind, length, rounds, seed) for seed in range(arguments.trials)]
                changed, keys, output = torch.tensor(trials).mean(0).tolist()
                rows.append(
                    {
                        "vectors": kind,
                        "length": length,
                        "rounds": rounds,
                        "changed": f"{changed:.1%}",
                        "keys": f"{keys:.2%}",
                        "output": f"{output:.2%}",
                    }
                )
    text = "\n".join(
        [
            "One later token is replaced; over the queries before it:",
            "",
            "- `changed`: queries whose set of visible earlier keys changes",
            "- `keys`: of the keys that they see before or after, those seen only once",
            "- `output`: change of the output relative to the output, random values",
            "",
            f"Chunks of {CHUNK}, one before, heads of {SIZE}, automatic buckets, mean of "
            f"{arguments.trials} trials.",
            "`independent`: random vectors; `clustered`: around 256 directions, as words are.",
            "Other documents of the row do not change at all: the tests compare them bit for bit.",
            "",
            table(rows),
        ]
    )
    print(text)
    if arguments.save:
        print(save("lsh_leak", "What a later token does to earlier ones", text, stamp()))


if __name__ == "__main__":
    main()
