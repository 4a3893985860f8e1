"""CPU-seconds and peak memory of our Longformer beside those of `transformers`.

python benchmarks/longformer_vs_transformers.py            # both tables, some minutes
python benchmarks/longformer_vs_transformers.py --quick    # 4,096 tokens, no memory
python benchmarks/longformer_vs_transformers.py --only memory
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _common import save, side_by_side, stamp, table
from reformer_memory import MEGABYTE, measure_step, run_fresh
from transformers import LongformerConfig as PublishedConfig
from transformers import LongformerForMaskedLM
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from lsp.models.longformer import Longformer
from lsp.models.longformer_config import RESIDUALS, LongformerConfig
from lsp.models.longformer_layers import Attention, Memo
from lsp.models.longformer_weights import from_published
from lsp.models.memory import MemoryConfig

HEADS, HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY = 4, 256, 1024, 2, 320
SHAPES = [(4096, 64), (4096, 512), (16384, 512)]  # tokens and window
GLOBAL_TOKENS = 4
MEMORY_LENGTH, MEMORY_WINDOW, MEMORY_LAYERS = 16384, 512, 6
SECTIONS = {
    "attention": "an attention layer with its projections, forward and backward",
    "model": f"a training step of a model of {LAYERS} layers",
}
Step = Callable[[], Any]


def config_values(length: int, window: int, **changes: Any) -> dict[str, Any]:
    layers = changes.get("num_hidden_layers", LAYERS)
    return {
        "attention_probs_dropout_prob": 0.0,
        "attention_window": [window] * layers,
        "hidden_dropout_prob": 0.0,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": length + 2,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        **changes,
    }


def first_tokens(length: int, count: int) -> torch.Tensor:
    """1 for the first tokens of a row, which are global: (1, L)."""
    return (torch.arange(length) < count).long()[None]


def attention_steps(
    length: int, window: int, global_tokens: int, dtype: torch.dtype
) -> dict[str, Step]:
    """Their layer and ours, with the same weights."""
    values = config_values(length, window)
    published = LongformerSelfAttention(PublishedConfig(**values), 0).to(dtype)
    block = Attention(LongformerConfig.from_dict(values), 0, MemoryConfig()).to(dtype)
    block.self.load_state_dict(published.state_dict())
    x_BLD = torch.randn(1, length, HIDDEN).to(dtype).requires_grad_()
    grad_BLE = torch.randn(1, length, HIDDEN).to(dtype)
    seen_BL = first_tokens(length, global_tokens) != 0
    their_mask = seen_BL.to(dtype) * 10000
    memo = Memo(None, seen_BL if global_tokens else None, None)

    def theirs() -> None:
        out = published(
            x_BLD,
            attention_mask=their_mask,
            is_index_masked=their_mask < 0,
            is_index_global_attn=seen_BL,
            is_global_attn=global_tokens > 0,
        )
        out[0].backward(grad_BLE)

    def ours() -> None:
        block.across(block.before(x_BLD, memo, slice(0, length)), memo).backward(grad_BLE)

    return {"transformers": theirs, "lsp": ours}


def models(values: dict[str, Any], global_tokens: int, dtype: torch.dtype) -> dict[str, Any]:
    """Theirs and ours, which keeps as little as it can or, as theirs, everything; same weights."""
    published = LongformerForMaskedLM(PublishedConfig(**values)).to(dtype).train()
    config = LongformerConfig.from_dict(values)
    config.global_tokens = global_tokens
    found: dict[str, Any] = {"transformers": published}
    for name, residual in (("lsp", "auto"), ("lsp_stored", "stored")):
        model = Longformer(config, MemoryConfig(residual))
        model.load_state_dict(from_published(published.state_dict(), config))
        found[name] = model.to(dtype).train()
    return found


def loss_of_step(name: str, model: Any, length: int, global_tokens: int) -> Step:
    """The loss of a row, of which every seventh token is predicted."""
    ids = torch.randint(3, model.config.vocab_size, (1, length))
    labels = torch.where(torch.arange(length) % 7 == 0, ids, -100)
    mask = first_tokens(length, global_tokens) if global_tokens else None

    def theirs() -> torch.Tensor:
        return model(ids, global_attention_mask=mask, labels=labels).loss

    def ours() -> torch.Tensor:
        model.begin_micro_batch(1)
        loss, count = model(ids, labels)
        return loss / count

    return theirs if name == "transformers" else ours


def model_steps(
    length: int, window: int, global_tokens: int, dtype: torch.dtype
) -> dict[str, Step]:
    """Loss and gradients of whole models with the same weights."""
    found = models(config_values(length, window), global_tokens, dtype)
    losses = {name: loss_of_step(name, m, length, global_tokens) for name, m in found.items()}
    return {name: lambda loss=loss: loss().backward() for name, loss in losses.items()}


def time_row(
    section: str, length: int, window: int, global_tokens: int, dtype: str, repeats: int
) -> dict[str, Any]:
    torch.manual_seed(0)
    make = {"attention": attention_steps, "model": model_steps}[section]
    steps = make(length, window, global_tokens, getattr(torch, dtype))
    seconds = side_by_side(steps, repeats)

    def ratio(name: str) -> Any:
        return round(seconds["transformers"] / seconds[name], 2) if name in seconds else ""

    return {
        "step": section,
        "length": length,
        "window": window,
        "global": global_tokens,
        "dtype": dtype,
        "transformers_s": round(seconds["transformers"], 4),
        "lsp_s": round(seconds["lsp"], 4),
        "ratio": ratio("lsp"),
        "stored_ratio": ratio("lsp_stored"),
    }


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of a training step of one model in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    values = spec["config"]
    if spec["library"] == "transformers":
        model: Any = LongformerForMaskedLM(PublishedConfig(**values)).train()
    else:
        config = LongformerConfig.from_dict(values)
        config.global_tokens = spec["global"]
        config.residual = spec.get("residual", config.residual)
        model = Longformer(config).train()
    return measure_step(model, loss_of_step(spec["library"], model, MEMORY_LENGTH, spec["global"]))


def memory_row(vocab_size: int, global_tokens: int) -> dict[str, Any]:
    values = config_values(
        MEMORY_LENGTH, MEMORY_WINDOW, num_hidden_layers=MEMORY_LAYERS, vocab_size=vocab_size
    )
    found = {
        library: run_fresh(
            {"library": library, "config": values, "global": global_tokens}, __file__
        )
        for library in ("transformers", "lsp")
    }
    size = {name: result["activation_bytes"] for name, result in found.items()}
    return {
        "vocabulary": vocab_size,
        "global": global_tokens,
        "transformers_MiB": round(size["transformers"] / MEGABYTE),
        "lsp_MiB": round(size["lsp"] / MEGABYTE),
        "ratio": round(size["transformers"] / size["lsp"], 1),
        "transformers_s": round(found["transformers"]["cpu_seconds"], 1),
        "lsp_s": round(found["lsp"]["cpu_seconds"], 1),
    }


def depth_row(residual: str) -> dict[str, Any]:
    """What ten more layers take, where they are run one by one or as two reversible streams."""
    mebibytes = []
    for layers in (2, 12):
        values = config_values(MEMORY_LENGTH, MEMORY_WINDOW, num_hidden_layers=layers)
        spec = {"library": "lsp", "config": values, "global": 0, "residual": residual}
        mebibytes.append(round(run_fresh(spec, __file__)["activation_bytes"] / MEGABYTE))
    return {"residual": residual, "2_layers_MiB": mebibytes[0], "12_layers_MiB": mebibytes[1]}


def time_rows(quick: bool, threads: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    rows = []
    for length, window in SHAPES:
        if quick and length > 4096:
            continue
        for section in SECTIONS:
            for global_tokens in (0, GLOBAL_TOKENS):
                for dtype in ("float32", "bfloat16"):
                    repeats = 5 if length <= 4096 else 2
                    rows.append(time_row(section, length, window, global_tokens, dtype, repeats))
                    print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def memory_rows() -> list[dict[str, Any]]:
    rows = []
    for vocab_size, global_tokens in ((VOCABULARY, 0), (VOCABULARY, GLOBAL_TOKENS), (50265, 0)):
        rows.append(memory_row(vocab_size, global_tokens))
        print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def depth_rows() -> list[dict[str, Any]]:
    rows = []
    for residual in RESIDUALS:
        rows.append(depth_row(residual))
        print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def time_text(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        [
            f"CPU-seconds, medians, both in turns in one process. {HEADS} heads of "
            f"{HIDDEN // HEADS}, hidden {HIDDEN}, intermediate",
            f"{INTERMEDIATE}, vocabulary {VOCABULARY}, batch 1, no dropout; `global` of the first "
            "tokens see and are seen by",
            "all. `ratio` is how many times longer `transformers` takes; `stored_ratio` the same",
            "where our model keeps everything for the backward pass (`memory=stored`), as",
            "`transformers` does, instead of computing it again.",
            "",
            *(f"- `{name}`: {what}" for name, what in SECTIONS.items()),
            "",
            table(rows),
        ]
    )


def memory_text(rows: list[dict[str, Any]], depths: list[dict[str, Any]]) -> str:
    return "\n".join(
        [
            f"A training step at {MEMORY_LENGTH:,} tokens, {MEMORY_LAYERS} layers, window "
            f"{MEMORY_WINDOW}, fp32, each in a fresh process: `MiB` is",
            "the peak beyond what the process held before it, with weights, gradients and AdamW's",
            "state in place; `s` the CPU-seconds of that first step.",
            "",
            table(rows),
            "",
            f"Our model of two depths, vocabulary {VOCABULARY}: as published, and with two streams",
            "whose layers are computed back (`architecture.residual=reversible`).",
            "",
            table(depths),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["time", "memory"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="4,096 tokens, no memory")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure))))
        return
    torch.set_num_threads(arguments.threads)
    stamped = stamp("transformers")
    found: dict[str, tuple[str, str]] = {}
    if arguments.only != "memory":
        text = time_text(time_rows(arguments.quick, arguments.threads))
        found["longformer_vs_transformers"] = "Longformer beside transformers", text
    if arguments.only != "time" and not arguments.quick:
        found["longformer_memory"] = (
            "Peak memory of the Longformer",
            memory_text(memory_rows(), depth_rows()),
        )
    for name, (title, text) in found.items():
        print(f"\n{title}\n\n{text}")
        if arguments.save:
            print(save(name, title, text, stamped))
    print("\n" + "\n".join(f"{key}: {value}" for key, value in stamped.items()))


if __name__ == "__main__":
    main()
