"""CPU-seconds of our Reformer beside those of `transformers`, in one run, step by step in turns.

python benchmarks/reformer_vs_transformers.py            # the whole table, some minutes
python benchmarks/reformer_vs_transformers.py --quick    # 4,096 tokens
python benchmarks/reformer_vs_transformers.py --lengths 16384 --dtypes float32 --sections lsh
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _common import MatrixProducts, save, side_by_side, stamp, table
from torch import nn
from transformers import ReformerConfig as PublishedConfig
from transformers import ReformerModelWithLMHead
from transformers.models.reformer.modeling_reformer import LocalSelfAttention, LSHSelfAttention

from lsp.models.layers.local import local_attention
from lsp.models.layers.lsh import automatic_num_buckets, hash_buckets, lsh_attention
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from lsp.models.reformer_weights import from_published

HEADS, HEAD_SIZE, HIDDEN, HASHES, CHUNK, LAYERS = 4, 64, 256, 2, 64, 2
SECTIONS = {
    "lsh": "LSH attention alone, with its projections, forward and backward",
    "local": "local attention alone, with its projections, forward and backward",
    "model": f"a training step of a model of {LAYERS} LSH layers",
}
Step = Callable[[], Any]


def config_values(length: int) -> dict[str, Any]:
    side = 2 ** round(math.log2(length) / 2)
    return {
        "attention_head_size": HEAD_SIZE,
        "attn_layers": ["lsh"] * LAYERS,
        "axial_pos_embds_dim": [64, HIDDEN - 64],
        "axial_pos_shape": [length // side, side],
        "feed_forward_size": 2 * HIDDEN,
        "hash_seed": 7,
        "hidden_dropout_prob": 0.0,
        "hidden_size": HIDDEN,
        "is_decoder": True,
        "local_attention_probs_dropout_prob": 0.0,
        "local_attn_chunk_length": CHUNK,
        "lsh_attention_probs_dropout_prob": 0.0,
        "lsh_attn_chunk_length": CHUNK,
        "max_position_embeddings": length,
        "num_attention_heads": HEADS,
        "num_buckets": automatic_num_buckets(length, CHUNK, length),
        "num_hashes": HASHES,
        "vocab_size": 258,
    }


def attention_steps(kind: str, length: int, dtype: torch.dtype) -> dict[str, Step]:
    """Their layer, and our functions on projections with the same weights."""
    config = PublishedConfig(**config_values(length))
    layer = {"lsh": LSHSelfAttention, "local": LocalSelfAttention}[kind](config, 0).to(dtype)
    x_BLD = torch.randn(1, length, HIDDEN).to(dtype).requires_grad_()
    grad_BLE = torch.randn(1, length, HEADS * HEAD_SIZE).to(dtype)

    def heads(linear: nn.Linear) -> torch.Tensor:
        return linear(x_BLD).unflatten(-1, (HEADS, HEAD_SIZE)).transpose(1, 2)

    def theirs() -> None:
        layer(x_BLD).hidden_states.backward(grad_BLE)

    def ours() -> None:
        options = {"chunk_length": CHUNK, "causal": True}
        if kind == "lsh":
            qk_BNLH, v_BNLH = heads(layer.query_key), heads(layer.value)
            buckets = hash_buckets(qk_BNLH, config.num_buckets, HASHES, seed=7)
            out_BNLH = lsh_attention(qk_BNLH, v_BNLH, buckets, **options)
        else:
            out_BNLH = local_attention(
                heads(layer.query), heads(layer.key), heads(layer.value), **options
            )
        out_BNLH.transpose(1, 2).flatten(2).backward(grad_BLE)

    return {"transformers": theirs, "lsp": ours}


def model_steps(length: int, dtype: torch.dtype) -> dict[str, Step]:
    """Loss and gradients of whole models with the same weights."""
    values = config_values(length)
    published = ReformerModelWithLMHead(PublishedConfig(**values)).to(dtype).train()
    config = ReformerConfig(**values)
    model = Reformer(config)
    model.load_state_dict(from_published(published.state_dict(), config))
    model = model.to(dtype).train()
    ids = torch.randint(0, values["vocab_size"], (1, length))
    labels = ids.roll(-1, dims=1)
    labels[:, -1] = -100

    def theirs() -> None:
        published(ids, labels=ids).loss.backward()

    def ours() -> None:
        model.begin_micro_batch(1)
        loss, count = model(ids, labels)
        (loss / count).backward()

    return {"transformers": theirs, "lsp": ours}


def measure(section: str, length: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    steps = (
        model_steps(length, dtype)
        if section == "model"
        else attention_steps(section, length, dtype)
    )
    seconds = side_by_side(steps, repeats)
    row: dict[str, Any] = {
        "step": section,
        "length": length,
        "dtype": str(dtype).removeprefix("torch."),
        "transformers_s": round(seconds["transformers"], 4),
        "lsp_s": round(seconds["lsp"], 4),
        "ratio": round(seconds["transformers"] / seconds["lsp"], 2),
    }
    for name, step in steps.items():
        with MatrixProducts() as products:
            step()
        row[f"{name}_over_products"] = round(seconds[name] / products.seconds(), 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"]
    )
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="4,096 tokens only")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    stamped = stamp("transformers")
    rows = []
    for length in [4096] if arguments.quick else arguments.lengths:
        repeats = max(1, min(7, 65536 // length))
        for section in arguments.sections:
            for dtype in arguments.dtypes:
                rows.append(measure(section, length, getattr(torch, dtype), repeats))
                if not arguments.json:
                    print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if arguments.json:
        print(json.dumps({"stamp": stamped, "rows": rows}))
        return
    text = "\n".join(
        [
            f"CPU-seconds, medians, both in turns in one process. {HEADS} heads of {HEAD_SIZE}, "
            f"hidden {HIDDEN}, chunks of {CHUNK},",
            f"{HASHES} hashing rounds, causal, batch 1, no dropout. `ratio` is how many times",
            "longer `transformers` takes; `over_products` is a step as multiple of its own matrix",
            "products, timed alone in a warm cache.",
            "",
            *(f"- `{name}`: {what}" for name, what in SECTIONS.items()),
            "",
            table(rows),
        ]
    )
    print("\n" + text + "\n\n" + "\n".join(f"{key}: {value}" for key, value in stamped.items()))
    if arguments.save:
        print(save("reformer_vs_transformers", "Reformer beside transformers", text, stamped))


if __name__ == "__main__":
    main()
