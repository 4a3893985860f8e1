"""The program that opens an export, function by function: each kind of difference is told."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from lsp.hub import reload
from lsp.hub.comparison import TEXTS, _expected_tokens
from lsp.hub.weights import fingerprint
from tests.hub.tiny import tiny_model, write_byte_tokenizer


def test_it_imports_nothing_of_this_project():
    tree = ast.parse(Path(reload.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert not [name for name in names if name.partition(".")[0] in ("lsp", "data_pipelines")]


def test_weights():
    model = tiny_model()
    expected = {name: fingerprint(weight) for name, weight in model.state_dict().items()}
    assert reload.weight_complaints(model, expected) == []
    with torch.no_grad():
        model.lm_head.decoder.weight[0, 0] += 1
    del expected["lm_head.bias"]
    assert reload.weight_complaints(model, expected) == [
        "weight lm_head.decoder.weight is not the trained one",
        "weight lm_head.bias was never trained",
    ]


def test_loading():
    info = {"missing_keys": {"b", "a"}, "unexpected_keys": [], "mismatched_keys": {("c", 1, 2)}}
    assert reload.loading_complaints(info) == [
        "missing_keys: a",
        "missing_keys: b",
        "mismatched_keys: ('c', 1, 2)",
    ]


def test_config():
    config = transformers.ReformerConfig(axial_pos_shape=[4, 4])
    assert reload.config_complaints(config, {"axial_pos_shape": [4, 4], "num_hashes": 1}) == []
    assert reload.config_complaints(config, {"num_hashes": 2}) == [
        "config.json says num_hashes=2, transformers reads 1"
    ]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes") / "tokenizer")


def test_tokens(tokenizer_path):
    expected = _expected_tokens(tokenizer_path)
    assert len(expected["cases"]) == len(TEXTS)
    task = {
        "folder": str(tokenizer_path),
        "opening": {"trust_remote_code": False},
        "tokenizer": expected,
    }
    assert reload.token_complaints(SimpleNamespace(vocab_size=260), task) == []
    assert reload.token_complaints(SimpleNamespace(vocab_size=259), task) == [
        "the tokenizer has 260 tokens, the model only 259"
    ]
    expected["size"] = 300
    expected["special"]["eos_token_id"] = 7
    expected["cases"][0]["ids"] = [1, 2, 3]
    assert reload.token_complaints(SimpleNamespace(vocab_size=260), task) == [
        "the tokenizer has 260 tokens, not 300",
        "tokenizer.eos_token_id is 1, not 7",
        f"the tokenizer reads {TEXTS[0][:40]!r} differently",
    ]


def test_class():
    task = {"auto_class": "AutoModel", "model_class": "Linear"}
    assert reload.class_complaints(torch.nn.Linear(1, 1), task) == []
    assert reload.class_complaints(torch.nn.ReLU(), task) == ["AutoModel gave ReLU"]
