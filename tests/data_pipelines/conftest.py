"""A small corpus, and a shortcut to prepare it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from data_pipelines.config import DataConfig, PackingConfig, TokenizerConfig
from data_pipelines.prepare import PreparedData, prepare
from tests.data_pipelines.corpora import write_corpus


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to disk matters in a power failure only, and takes most of the time here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


Prepare = Callable[..., PreparedData]


@pytest.fixture
def prepare_text(tmp_path: Path) -> Prepare:
    """Prepares with small defaults; keywords go to the configs by name."""

    def run(
        sequence_length: int = 128,
        length_multiple: int = 1,
        seed: int = 0,
        tokenizer: TokenizerConfig | None = None,
        packing: PackingConfig | None = None,
        special: Sequence[str] = (),
        **data: object,
    ) -> PreparedData:
        values = {"source": "text", "num_processes": 1, "cache_root": str(tmp_path / "prepared")}
        return prepare(
            DataConfig(**{**values, **data}),  # type: ignore[arg-type]
            tokenizer or TokenizerConfig(),
            packing or PackingConfig(),
            sequence_length=sequence_length,
            length_multiple=length_multiple,
            seed=seed,
            special=special,
            progress=False,
        )

    return run
