"""Random numbers: one seed for a run, independent streams for whatever needs one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def stream(*key: int) -> np.random.Generator:
    """A generator that is a pure function of `key`, for example (seed, epoch) or (seed, sample)."""
    return np.random.default_rng(np.random.SeedSequence(key))


def rng_state() -> dict[str, Any]:
    """State of the global generators, as plain tensors and containers."""
    _, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": [int(position), int(has_gauss), float(cached)],
        "python_keys": torch.tensor(internal, dtype=torch.int64),
        "python_rest": [version, gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    position, has_gauss, cached = state["numpy_rest"]
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    version, gauss = state["python_rest"]
    random.setstate((version, tuple(state["python_keys"].tolist()), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
