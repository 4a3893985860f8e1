"""The run that all launchers are compared with, trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsp.core.exit_codes import DONE
from tests.distributed.spawn import environment, free_port
from tests.launch.scripts import STEPS
from tests.processes import Session
from tests.run.tiny import words, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("shared") / "corpus")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The run on two processes that nobody stopped."""
    root, port = tmp_path_factory.mktemp("whole"), free_port()
    typed = ["train", *words(root, corpus, *STEPS)]
    sessions = [
        Session(typed, root / f"{rank}.log", environment=environment(rank, 2, port))
        for rank in range(2)
    ]
    assert [session.wait(180) for session in sessions] == [DONE, DONE], sessions[0].output
    return root / "run"
