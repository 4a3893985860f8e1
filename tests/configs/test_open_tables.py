"""Keys that only `transformers` knows are given as any other is, with or without a plus."""

from __future__ import annotations

import pytest

from lsp.core.errors import UserError
from lsp.run.compose import load_train_config

NODE = "architecture.model_init_config"


def given(*words: str) -> dict[str, object]:
    return load_train_config(["run_name=x", *words]).architecture.model_init_config


@pytest.mark.parametrize(
    "words",
    [
        [f"{NODE}={{num_hidden_layers: 2, hidden_size: 16}}"],
        [f"{NODE}.num_hidden_layers=2", f"{NODE}.hidden_size=16"],
        [f"+{NODE}.num_hidden_layers=2", f"++{NODE}.hidden_size=16"],
        [f"{NODE}={{num_hidden_layers: 2}}", f"{NODE}.hidden_size=16"],
    ],
    ids=" ".join,
)
def test_keys_one_by_one_and_as_a_table(words: list[str]):
    hub = ["architecture=hub", "architecture.model_type=llama"]
    assert given(*hub, *words) == {"num_hidden_layers": 2, "hidden_size": 16}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["architecture=reformer", f"{NODE}.x=2"], "model_init_config.* is not a key"),
        (["architecture=hub", f"{NODE}={{x: 2"], f"^{NODE}={{x: 2 cannot be read"),
    ],
    ids=str,
)
def test_what_cannot_be(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        given(*words)
