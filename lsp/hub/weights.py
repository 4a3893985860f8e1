"""Weight files as the Hub knows them: safetensors, whole or in shards, and the older pickles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file

from lsp.checkpointing.files import save_tensors
from lsp.core.errors import UserError, unknown_choice

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats of exported weights, by the names that `precision=` has too."""

SAFE_FILE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE_FILE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(key: str, size: str | int) -> int:
    """Bytes in a size such as `5GB` (decimal units, as on the Hub) or a plain number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", str(size).strip().upper())
    number = int(float(match[1]) * UNITS[match[2] or "B"]) if match else 0
    if number <= 0:
        raise UserError(f"{key}={size} is not a size: write 5GB, 500MB or a number of bytes")
    return number


def cast(weights: Mapping[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    """The weights on the CPU in a number format of `DTYPES`, each in memory of its own.

    Raises:
        UserError: The format is unknown, a weight is not finite, or one is too large for fp16.
    """
    if dtype not in DTYPES:
        raise unknown_choice("dtype", dtype, DTYPES)
    result = {}
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(f"{name} has values that are not finite: export an earlier checkpoint")
        result[name] = weight.detach().to("cpu", DTYPES[dtype], copy=True).contiguous()
        if not result[name].isfinite().all():
            raise UserError(f"dtype={dtype} cannot hold {name}: use bf16 or fp32")
    return result


def fingerprint(weight: torch.Tensor) -> str:
    """SHA-256 over a tensor's number format, shape and bytes.

    The program that reloads an export computes the same on its own (`lsp/hub/reload.py`).
    """
    header = f"{weight.dtype}{tuple(weight.shape)}".encode()
    data = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return sha256(header + data.tobytes()).hexdigest()


def write_weights(weights: Mapping[str, torch.Tensor], folder: Path, max_shard_size: int) -> None:
    """Writes `model.safetensors`, or shards and their index where that is larger than allowed.

    Args:
        weights: Contiguous tensors that share no memory, by published name.
        folder: Existing folder.
        max_shard_size: Largest size of one file, in bytes of tensors.
    """
    split = split_torch_state_dict_into_shards(dict(weights), max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        tensors = {name: weights[name] for name in names}
        save_tensors(tensors, folder / file, {"format": "pt"})
        # safetensors lets only the owner read what it writes.
        (folder / file).chmod(0o644)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def read_published_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Reads the weights of a published folder, whichever way they are stored.

    Safetensors are preferred. Pickles are opened with torch's restricted unpickler, which
    creates tensors and runs no code.

    Raises:
        UserError: There are none, a shard is missing, or a file cannot be read as plain tensors.
    """
    for index in (SAFE_INDEX, PICKLE_INDEX):
        whole = folder / index.removesuffix(".index.json")
        if whole.is_file():
            return _read_file(whole)
        if (folder / index).is_file():
            return _read_shards(folder, folder / index)
    raise UserError(f"{folder} has no weights: expected {SAFE_FILE}, its index, or {PICKLE_FILE}")


def _read_shards(folder: Path, index: Path) -> dict[str, torch.Tensor]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted(set(map(str, weight_map.values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of weights: {error!r}") from None
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        # A shard is a neighbour of its index: a name with a folder in it would lead elsewhere.
        if Path(file).name != file or not (folder / file).is_file():
            raise UserError(f"{index} names {file}, which is not in {folder}")
        weights |= _read_file(folder / file)
    absent = sorted(set(weight_map) - set(weights))
    if absent:
        raise UserError(f"{index} names {absent[0]}, which is in none of the shards")
    return weights


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            weights: dict[str, torch.Tensor] = load_file(file)
            return weights
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        asked = re.search(r"unsupported (?:GLOBAL|global:?) (\S+)", str(error))
        if asked:
            raise UserError(
                f"{file} cannot be read as plain tensors: it is a pickle that asks for {asked[1]}, "
                "which could run anything; get the weights as safetensors"
            ) from None
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{file} cannot be read as plain tensors: {reason[0][:200]}") from None
    tensors = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    )
    if not tensors:
        raise UserError(f"{file} is not a table of names and tensors: save model.state_dict()")
    return dict(content)
