"""Opens an exported folder with plain `transformers` and reports what it finds.

Run as a file in a process of its own, `python -P reload.py <task.json> <report.json>`: it has to
see what anyone who downloads the folder sees, so it imports nothing of this project.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file


def main(task_file: str, report_file: str) -> None:
    """Reads a task of `lsp/hub/comparison.py` and writes its report beside it."""
    started = time.perf_counter()
    task = json.loads(Path(task_file).read_text(encoding="utf-8"))
    expected = load_file(Path(task_file).with_name("expected.safetensors"))
    torch.set_num_threads(task["threads"])
    auto_class = getattr(transformers, task["auto_class"])
    model, info = auto_class.from_pretrained(
        task["folder"], output_loading_info=True, **task["opening"]
    )
    model.eval()
    complaints = class_complaints(model, task) + loading_complaints(info)
    complaints += config_complaints(model.config, task["config"])
    complaints += weight_complaints(model, task["weights"])
    if task["tokenizer"] is not None:
        complaints += token_complaints(model.config, task)
    differences: dict[str, float] = {}
    # What transformers prints while it computes belongs to no report.
    with contextlib.redirect_stdout(sys.stderr):
        if not complaints:
            set_hash_seed(model, task["hash_seed"])
            for case in task["cases"]:
                differences[case["name"]] = largest_difference(model, case, expected, task)
        if not complaints and task["generate"]:
            complaints += generation_complaints(model, expected["prompt"], task)
    foreign = {"lsp", "data_pipelines"} & set(sys.modules)
    complaints += [f"the fresh process imported {name}" for name in sorted(foreign)]
    report = {
        "complaints": complaints,
        "differences": differences,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds": time.perf_counter() - started,
    }
    Path(report_file).write_text(json.dumps(report), encoding="utf-8")


def class_complaints(model: torch.nn.Module, task: dict[str, Any]) -> list[str]:
    """Whether the folder opened as what it was trained to be."""
    name = type(model).__name__
    return [] if name == task["model_class"] else [f"{task['auto_class']} gave {name}"]


def loading_complaints(info: dict[str, Any]) -> list[str]:
    """Weights that were missing, unexpected or of another shape."""
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return [f"{kind}: {item}" for kind in kinds for item in sorted(map(str, info.get(kind, ())))]


def config_complaints(config: Any, expected: dict[str, Any]) -> list[str]:
    """Fields that `transformers` reads differently than they were written."""
    found = json.loads(json.dumps(config.to_dict()))
    return [
        f"config.json says {key}={value!r}, transformers reads {found.get(key)!r}"
        for key, value in expected.items()
        if found.get(key) != value
    ]


def weight_complaints(model: torch.nn.Module, expected: dict[str, str]) -> list[str]:
    """Tensors whose number format, shape or bits are not those of the training."""
    found = {name: fingerprint(weight) for name, weight in model.state_dict().items()}
    wrong = [name for name in sorted(expected) if found.get(name) != expected[name]]
    extra = sorted(set(found) - set(expected))
    return [f"weight {name} is not the trained one" for name in wrong] + [
        f"weight {name} was never trained" for name in extra
    ]


def fingerprint(weight: torch.Tensor) -> str:
    """As `lsp.hub.weights.fingerprint` computes it."""
    header = f"{weight.dtype}{tuple(weight.shape)}".encode()
    data = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return sha256(header + data.tobytes()).hexdigest()


def token_complaints(config: Any, task: dict[str, Any]) -> list[str]:
    """Whether text becomes the same tokens and tokens the same text."""
    expected, vocab_size = task["tokenizer"], config.vocab_size
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        task["folder"], trust_remote_code=task["opening"]["trust_remote_code"]
    )
    size = len(tokenizer)
    complaints = []
    if size != expected["size"]:
        complaints.append(f"the tokenizer has {size} tokens, not {expected['size']}")
    if size > vocab_size:
        complaints.append(f"the tokenizer has {size} tokens, the model only {vocab_size}")
    for name, token_id in expected["special"].items():
        if getattr(tokenizer, name) != token_id:
            complaints.append(f"tokenizer.{name} is {getattr(tokenizer, name)}, not {token_id}")
    for case in expected["cases"]:
        ids = tokenizer(case["text"]).input_ids
        if ids != case["ids"] or tokenizer.decode(ids) != case["decoded"]:
            complaints.append(f"the tokenizer reads {case['text'][:40]!r} differently")
    return complaints


def set_hash_seed(model: Any, seed: int | None) -> None:
    """Fixes the rotations of LSH attention, which are otherwise drawn anew for every call."""
    for module in model.modules():
        if hasattr(module, "hash_seed"):
            module.hash_seed = seed


@torch.no_grad()
def largest_difference(
    model: torch.nn.Module,
    case: dict[str, Any],
    expected: dict[str, torch.Tensor],
    task: dict[str, Any],
) -> float:
    """Largest |difference| of a logit at the compared positions; not finite counts as infinite."""
    model.to(getattr(torch, case["dtype"]))
    prefix = f"{case['name']}.inputs."
    inputs = {
        name.removeprefix(prefix): tensor
        for name, tensor in expected.items()
        if name.startswith(prefix)
    }
    positions = expected[f"{case['name']}.positions"]
    if task["keeps_logits"]:
        answer = model(**inputs, logits_to_keep=positions, use_cache=False)
        logits = getattr(answer, task["output"])
    else:
        logits = getattr(model(**inputs), task["output"])[:, positions]
    difference = (logits.double() - expected[f"{case['name']}.logits"].double()).abs().max()
    return float(difference) if difference.isfinite() else float("inf")


def generation_complaints(model: Any, prompt: torch.Tensor, task: dict[str, Any]) -> list[str]:
    """Whether `generate` continues a prompt, given what tokenizers give with it."""
    count: int = task["generate"]
    out = model.float().generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
    )
    # What a decoder beside an encoder writes begins with one token that it was given.
    given = prompt.shape[1] if task["start_id"] is None else 1
    added = out.shape[1] - given
    return [] if added == count else [f"generate gave {added} tokens instead of {count}"]


if __name__ == "__main__":
    main(*sys.argv[1:])
