"""Versions of what computed a result, recorded beside it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

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
