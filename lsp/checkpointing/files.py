"""Writing so that a file or folder is whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
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


def write_tensors(folder: Path, stem: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Streams named tensors into `<stem>-00001.safetensors`, …, a few gigabytes each."""
    for name, shard in shards(stem, tensors):
        save_tensors(shard, folder / name)


def shards(
    stem: str, tensors: Iterable[tuple[str, torch.Tensor]], rank: int = 0, world_size: int = 1
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Copies this process's share of a stream of tensors to the host, some gigabytes at a time.

    Each tensor belongs to the process that has the fewest bytes so far, which all of them work
    out alike, so that memory and disk traffic are spread evenly.

    Args:
        stem: First part of the files' names.
        tensors: The same on every process, in the same order. Consumed to the end, because each
            item may take a collective.
        rank: Number of this process.
        world_size: How many there are.

    Yields:
        Name and content of a file, which no other process writes.
    """
    shard: dict[str, torch.Tensor] = {}
    size, number, loads = 0, 1 + rank, [0] * world_size
    for name, tensor in tensors:
        bytes_here = tensor.numel() * tensor.element_size()
        owner = loads.index(min(loads))
        loads[owner] += bytes_here
        if owner != rank:
            continue
        if shard and size + bytes_here > SHARD_BYTES:
            yield f"{stem}-{number:05d}.safetensors", shard
            shard, size, number = {}, 0, number + world_size
        # A copy, so that tied or viewed memory becomes an independent, contiguous tensor.
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += bytes_here
    if shard:
        yield f"{stem}-{number:05d}.safetensors", shard


def save_tensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes a file that everyone may read who may read the files around it."""
    save_file(tensors, path, metadata)
    # safetensors keeps its files to their owner, whatever the umask says.
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    # Elsewhere there is no way to ask without setting it, for an instant and for all threads.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read_tensors(folder: Path, stem: str) -> Mapping[str, torch.Tensor]:
    """What was written as `<stem>-*.safetensors`; a tensor is read when it is asked for."""
    return LazyTensors(sorted(folder.glob(f"{stem}-*.safetensors")))


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors in files, mapped into memory one at a time.

    The files are opened at once: deleting them afterwards takes nothing away.

    Args:
        paths: Files in the safetensors format.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._file_of: dict[str, Any] = {}
        for path in paths:
            file: Any = safe_open(path, framework="pt")
            self._file_of |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def record(path: Path) -> dict[str, Any]:
    """What a manifest says of a file, once the file is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "blake2b": checksum(path)}


def hand_over(folder: Path, rank: int, records: dict[str, dict[str, Any]]) -> None:
    """Tells the process that will seal a folder that this one has written its files."""
    write_json(folder / _receipt(rank), records)


def handed_over(folder: Path, world_size: int) -> bool:
    """Whether every process has written its files."""
    return all((folder / _receipt(rank)).exists() for rank in range(world_size))


def _receipt(rank: int) -> str:
    return f".written-{rank:05d}.json"


def seal(folder: Path) -> None:
    """Writes the manifest of a finished folder: sizes and checksums, after all else is on disk.

    Files that a process has handed over are taken by its word; it is the one that had them in
    memory.

    Raises:
        OSError: If a file that was handed over is not there.
    """
    records: dict[str, dict[str, Any]] = {}
    for receipt in folder.glob(".written-*.json"):
        records |= json.loads(receipt.read_text(encoding="utf-8"))
        receipt.unlink()
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(records.keys() - names):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / name))
    entries = {name: records.get(name) or record(folder / name) for name in sorted(names)}
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


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
