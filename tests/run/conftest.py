"""A corpus that the runs of a session share, prepared once."""

from pathlib import Path

import pytest

from tests.run.tiny import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("shared") / "corpus")
