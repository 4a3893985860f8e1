"""What tests of exports share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def modules_of_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One folder for all code that exports bring along, away from the user's.

    Once a process has imported from it, `transformers` looks for later code in the same one.
    """
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("modules")
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        yield
