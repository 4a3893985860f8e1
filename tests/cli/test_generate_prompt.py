"""Any prompt can be typed as it is."""

import pytest

from lsp.cli.generate import literal_prompt
from lsp.run.compose import load_config

PROMPTS = [
    "def ",
    "",
    "null",
    "1,2,3",
    "[a, {b",
    "def f(x, y=1):\n    return x",
    "it's",
    'say "hi"',
    '"a" and "b"',
    "'a' or 'b'",
    "back\\slash",
    "ends with \\",
    'quote after backslash \\"',
    "price ${x} and \\${y}",
    "two \\\\ and $ and {",
    " spaces  around ",
    "ünïcode → ∑ 日本",
    "a=b, c: d # e",
    "tab\tand\r\nnewline",
    '"',
    "\\",
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=repr)
def test_prompt_arrives_as_typed(prompt):
    words = literal_prompt(["run=x", f"prompt={prompt}"])
    assert load_config("generate", words).prompt == prompt


@pytest.mark.parametrize(
    ("typed", "means"),
    [('"a, b"', "a, b"), ("'a, b'", "a, b"), ("${run}", "x"), (r'"\"hi\""', '"hi"')],
    ids=["double-quoted", "single-quoted", "interpolation", "escaped"],
)
def test_what_is_quoted_for_hydra_is_left_alone(typed, means):
    assert load_config("generate", literal_prompt(["run=x", f"prompt={typed}"])).prompt == means
