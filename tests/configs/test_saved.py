"""A run's config.yaml: plain YAML that gives the same dataclasses back."""

import pytest
import yaml

from lsp.core.errors import UserError
from lsp.run.compose import from_plain, load_train_config, read_yaml, save_yaml, to_plain

RUNS = {
    "default": [],
    "debug": ["experiment=debug"],
    "adafactor": ["optimizer=adafactor"],
    "muon": ["optimizer=muon"],
    "factorised-buckets": ["architecture.num_buckets=[4,8]"],
    "eos-list": ["architecture.eos_token_id=[1,2]"],
    "paths": ["data=text", "data.paths=[a/*.txt,b.txt]"],
    "small-floats": ["optimizer.learning_rate=1e-7", "architecture.layer_norm_eps=1e-12"],
    "unicode": ['run_name="läuft"', 'data.field="名"'],
}


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_what_is_saved_is_read_back(words, tmp_path):
    config = load_train_config(words)
    (tmp_path / "config.yaml").write_text(save_yaml(config), encoding="utf-8")
    assert read_yaml(tmp_path / "config.yaml") == config


def test_saved_text_is_complete_and_plain():
    plain = yaml.safe_load(save_yaml(load_train_config()))
    assert plain["architecture"]["model_type"] == "reformer"
    assert plain["optimizer"]["name"] == "adamw"
    assert plain["trainer"]["drift_warning"] == 1e-3
    assert "hydra" not in plain


def _without(plain, *path):
    node = plain
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    return plain


def _with(plain, value, *path):
    node = plain
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return plain


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plain: _without(plain, "architecture", "model_type"), "not the config.yaml"),
        (lambda plain: _with(plain, "gpt", "architecture", "model_type"), "reformer"),
        (lambda plain: _with(plain, "sgd", "optimizer", "name"), "adamw"),
        (lambda plain: _with(plain, 1, "trainer", "zzz"), "trainer.zzz"),
        (lambda plain: _with(plain, "x", "seed"), "seed=x"),
        (lambda plain: _with(plain, -1, "trainer", "max_steps"), "trainer.max_steps=-1"),
        (lambda plain: _with(plain, 0, "architecture", "hidden_size"), "architecture.hidden_size"),
        (lambda plain: _with(plain, 1, "zzz"), "zzz"),
    ],
    ids=[
        "no-model-type",
        "unknown-architecture",
        "unknown-optimizer",
        "unknown-key",
        "wrong-type",
        "refused",
        "refused-architecture",
        "unknown-node",
    ],
)
def test_what_cannot_be_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        from_plain(change(to_plain(load_train_config())))


@pytest.mark.parametrize(
    "content",
    [None, b"seed: [1}", b"- 1", b"", b"\xff\xfe\x00", b"seed: 1"],
    ids=["missing", "not-yaml", "a-list", "empty", "not-text", "something-else"],
)
def test_an_unreadable_file_is_named(content, tmp_path):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert len(str(caught.value).splitlines()) <= 2


def test_what_is_saved_does_not_change_the_config():
    config = load_train_config()
    to_plain(config)["architecture"].clear()
    assert config == load_train_config()
