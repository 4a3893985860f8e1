"""Writing so that a file or folder is whole or absent, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data_pipelines.files import checksum

MANIFEST = "manifest.json"
SHARD_BYTES = 4 * 2**30


class IncompleteError(Exception):
    """A folder is not what its manifest says; the message names the first difference."""


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    aside = path.with_name(f".{path.name}.aside")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file in one step; floats keep their full precision."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_tensors(
    folder: Path, stem: str, tensors: Iterable[tuple[str, torch.Tensor]], *, write: bool
) -> None:
    """Streams named tensors into `<stem>-00001.safetensors`, …, a few gigabytes each.

    Args:
        folder: Where the files go.
        stem: First part of their names.
        tensors: Consumed to the end on every process, because each item may take a collective.
        write: Whether this process writes; the others only take part.
    """
    shard: dict[str, torch.Tensor] = {}
    size, number = 0, 1
    for name, tensor in tensors:
        if not write:
            continue
        bytes_here = tensor.numel() * tensor.element_size()
        if shard and size + bytes_here > SHARD_BYTES:
            save_tensors(shard, folder / f"{stem}-{number:05d}.safetensors")
            shard, size, number = {}, 0, number + 1
        # A copy, so that tied or viewed memory becomes an independent, contiguous tensor.
        shard[name] = tensor.to("cpu", copy=True).contiguous()
        size += bytes_here
    if write:
        save_tensors(shard, folder / f"{stem}-{number:05d}.safetensors")


def save_tensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes a file that everyone may read who may read the files around it."""
    save_file(tensors, path, metadata)
    # safetensors keeps its files to their owner, whatever the umask says.
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    # There is no way to ask without setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read_tensors(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """What `write_tensors` wrote."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{stem}-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensors[name] = file.get_tensor(name)
    return tensors


def seal(folder: Path) -> None:
    """Writes the manifest of a finished folder: sizes and checksums, after all else is on disk."""
    entries = {}
    for path in _content(folder):
        entries[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "blake2b": checksum(path),
        }
        with path.open("rb") as file:
            os.fsync(file.fileno())
    write_json(folder / MANIFEST, {"format": 1, "files": entries})


def verify(folder: Path) -> None:
    """Compares a folder with its manifest.

    Raises:
        IncompleteError: If a file is missing, or differs in size or content.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IncompleteError(f"{MANIFEST} is missing or unreadable") from error
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise IncompleteError(f"{name} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise IncompleteError(
                f"{name} has {path.stat().st_size} bytes, not the {entry['bytes']} written"
            )
        if checksum(path) != entry["blake2b"]:
            raise IncompleteError(f"{name} does not match its checksum")


def publish(aside: Path, final: Path) -> None:
    """Gives a sealed folder its final name; what had that name goes first."""
    if final.exists():
        remove(final)
    os.rename(aside, final)
    _sync_directory(final.parent)


def remove(folder: Path) -> None:
    """Deletes a folder: first out of sight in one move, so that a kill leaves no half of it."""
    dying = folder.with_name(f".{folder.name}.deleted")
    if dying.exists():
        shutil.rmtree(dying)
    folder.rename(dying)
    shutil.rmtree(dying)


def _content(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            yield path


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
