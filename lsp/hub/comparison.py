"""An exported folder against the trained model: same weights, same logits, same tokens.

The folder is opened by `lsp/hub/reload.py` in a fresh process that knows only `transformers`. What
it has to find is computed here, from the weights under our own names, so that a mistake in the
names, in the files or in either model shows as a difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from lsp.core.errors import UserError
from lsp.core.seeding import stream
from lsp.hub.form import PublishedForm
from lsp.hub.weights import fingerprint
from lsp.models.interface import LanguageModel

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit where that is above 1."""
HASH_SEED = 20
"""Of the rotations of LSH attention while comparing, where the model has none configured."""
COMPARED_POSITIONS = 128
GENERATED_TOKENS = 4
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    'def main(n: int = 0) -> None:\n    print(f"{n:>8}")\n\n\treturn  # tabs and  spaces\n',
    "naïve façade, Ελληνικά, русский, 日本語, 🙂 e\u0301",
    "a <eos> </s> [MASK] that is only text",
    "",
)
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


class ExportMismatchError(UserError):
    """The exported folder is not the trained model."""


@dataclass(frozen=True)
class Case:
    """One forward pass of both programs.

    Attributes:
        name: What the pass is about.
        length: Positions in the row.
        dtype: Arithmetic of both programs. Whole-length passes use float64: an LSH bucket is an
            argmax, and among many tokens some are so close to a tie that the rounding errors of
            fp32 decide, which moves tokens into other chunks and changes their logits visibly.
    """

    name: str
    length: int
    dtype: str


@dataclass(frozen=True)
class ComparedLogits(Case):
    """What came of a case.

    Attributes:
        positions: How many positions were compared, all scores of each.
        largest: Largest |logit|.
        difference: Largest |difference| of a logit.
    """

    positions: int
    largest: float
    difference: float

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE * max(1.0, self.largest)


@dataclass(frozen=True)
class Comparison:
    """What a fresh process found in an exported folder.

    Attributes:
        cases: Compared forward passes.
        weights: How many tensors were compared, bit by bit.
        texts: How many texts were encoded and decoded the same; 0 without a tokenizer.
        generated: Tokens that `generate` continued a prompt by.
        hash_seed: Of the rotations of LSH attention in the compared passes.
        versions: Of what the fresh process ran.
        seconds: Time of the fresh process.
    """

    cases: tuple[ComparedLogits, ...]
    weights: int
    texts: int
    generated: int
    hash_seed: int | None
    versions: dict[str, str]
    seconds: float


def compare(
    folder: Path,
    reference: LanguageModel,
    form: PublishedForm,
    published: Mapping[str, torch.Tensor],
    *,
    cases: list[Case],
    config: Mapping[str, Any],
    hash_seed: int | None,
    tokenizer_path: Path | None,
) -> Comparison:
    """Opens an exported folder in a fresh process and compares it with the trained model.

    Args:
        folder: The export.
        reference: The trained model on the CPU in evaluation mode, with the weights rounded as in
            the export and `hash_seed` as its own. Its number format is changed.
        form: How `transformers` knows the architecture.
        published: The weights that the folder has to hold; opened, they are fp32.
        cases: Forward passes to compare.
        config: What `config.json` has to say.
        hash_seed: Of LSH rotations in both programs; None where the model has none.
        tokenizer_path: Tokenizer of the run, if it has one.

    Raises:
        ExportMismatchError: Something differs, or the folder cannot be opened.
    """
    shortest = min((case.length for case in cases), default=0)
    generated = GENERATED_TOKENS if form.generates and shortest > GENERATED_TOKENS else 0
    tokens = None if tokenizer_path is None else _expected_tokens(tokenizer_path)
    expected, largest = _expected_logits(reference, form, cases)
    if generated:
        expected["prompt"] = _random_ids(reference, min(8, shortest - generated))
    with TemporaryDirectory(prefix="lsp-export-") as scratch:
        save_file(expected or {"none": torch.zeros(1)}, Path(scratch) / "expected.safetensors")
        report = _reload(
            Path(scratch),
            {
                "folder": str(folder.resolve()),
                "auto_class": form.auto_class,
                "model_class": form.model_class,
                "config": dict(config),
                "opening": {"trust_remote_code": bool(form.auto_map), **form.opening},
                "weights": {name: fingerprint(w.float()) for name, w in published.items()},
                "tokenizer": tokens,
                "hash_seed": hash_seed,
                "cases": [asdict(case) for case in cases],
                "keeps_logits": form.keeps_logits,
                "output": form.output,
                "start_id": form.special_ids(reference.config).get("decoder_start_token_id"),
                "generate": generated,
                "threads": torch.get_num_threads(),
            },
        )
    compared = tuple(
        ComparedLogits(
            **asdict(case),
            positions=len(expected[f"{case.name}.positions"]),
            largest=largest[case.name],
            difference=report["differences"][case.name],
        )
        for case in cases
    )
    for case in compared:
        if not case.agrees:
            raise ExportMismatchError(
                f"the exported model's logits differ from the trained one's by "
                f"{case.difference:.2g} at length {case.length} (largest logit "
                f"{case.largest:.3g}); nothing was exported"
            )
    return Comparison(
        cases=compared,
        weights=len(published),
        texts=len(TEXTS) if tokens else 0,
        generated=generated,
        hash_seed=hash_seed,
        versions=report["versions"],
        seconds=report["seconds"],
    )


@torch.no_grad()
def _expected_logits(
    reference: LanguageModel, form: PublishedForm, cases: list[Case]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Inputs and logits of every case, and the largest |logit| of each."""
    tensors: dict[str, torch.Tensor] = {}
    largest = {}
    for case in cases:
        reference.to(getattr(torch, case.dtype))
        ids_BL = _random_ids(reference, case.length)
        count = min(COMPARED_POSITIONS, case.length)
        positions_K = torch.linspace(0, case.length - 1, count).round().long()
        logits = form.some_logits(reference, ids_BL, positions_K)
        largest[case.name] = float(logits.abs().max())
        for name, tensor in form.inputs(reference.config, ids_BL).items():
            tensors[f"{case.name}.inputs.{name}"] = tensor
        tensors[f"{case.name}.positions"] = positions_K
        tensors[f"{case.name}.logits"] = logits.contiguous()
    return tensors, largest


def _random_ids(model: LanguageModel, length: int) -> torch.Tensor:
    """(1, L) ids that are the same for the same length and vocabulary."""
    vocab_size, padding = int(model.config.vocab_size), model.config.pad_token_id
    ids = stream(length, vocab_size).integers(vocab_size, size=(1, length))
    if padding is not None:  # some published models take it for padding wherever it is
        ids[ids == padding] = (padding + 1) % vocab_size
    return torch.from_numpy(ids)


def _expected_tokens(tokenizer_path: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    cases = []
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        cases.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "unk_token_id")
    special = {name: getattr(tokenizer, name) for name in names}
    return {"size": len(tokenizer), "special": special, "cases": cases}


def _reload(scratch: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Runs `reload.py` on a task and reads its report.

    Raises:
        ExportMismatchError: It found something, or did not come to an end.
    """
    task_file, report_file = scratch / "task.json", scratch / "report.json"
    task_file.write_text(json.dumps(task), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    environment |= {
        # Where the rotations of LSH attention are drawn: the generators of a GPU give others.
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        # Where transformers puts the code that an export brings along.
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    script = Path(__file__).with_name("reload.py")
    # -P: the script's own folder must not be searched for modules.
    command = [sys.executable, "-P", str(script), str(task_file), str(report_file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not report_file.exists():
        raise ExportMismatchError(_why_it_ended(done))
    report: dict[str, Any] = json.loads(report_file.read_text(encoding="utf-8"))
    if report["complaints"]:
        first, more = report["complaints"][0], len(report["complaints"]) - 1
        raise ExportMismatchError(
            "transformers does not find the trained model in the export: "
            f"{first}{f' (and {more} more)' if more else ''}; nothing was exported"
        )
    return report


def _why_it_ended(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return (
            f"the process that reloads the export was ended by signal {-done.returncode}, probably "
            "for memory: verify_length=4096 compares at that length instead of the training length"
        )
    lines = done.stderr.strip().splitlines() or ["no reason given"]
    return f"transformers cannot open the export: {lines[-1][:300]}; nothing was exported"
