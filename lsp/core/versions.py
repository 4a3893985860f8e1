"""Versions of what computed a result, recorded beside it."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lsp

PACKAGES = ("torch", "deepspeed", "accelerate", "datasets", "tokenizers", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, lsp and the packages that shape a result."""
    found = {"python": platform.python_version(), "lsp": lsp.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def source_digest() -> str:
    """Digest of the source files of lsp and its data pipelines, as they lie on this machine.

    The version says what was installed; an edited checkout has the same.
    """
    digest = hashlib.sha256()
    package = Path(lsp.__file__).resolve().parent
    for folder in (package, package.parent / "data_pipelines"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(package.parent)}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
