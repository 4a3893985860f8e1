"""What `lsp VERB --help` shows, and that all of it is true."""

import re
import shlex

import pytest

from lsp.cli.main import VERBS, main
from lsp.core.exit_codes import BUG, DIVERGED, DONE, INTERRUPTED, LEAK, USER_ERROR
from lsp.run.compose import CONFIGS, compose, conf_dir, hydra_app, load_config, to_dataclass

GROUPS = sorted(
    folder.name for folder in conf_dir().iterdir() if folder.is_dir() and folder.name != "hydra"
)
EXAMPLES = [(verb, example) for verb in VERBS.values() for _, example in verb.examples]


@pytest.fixture
def train_help(capsys):
    assert main(["train", "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("group", GROUPS)
def test_train_shows_every_choice_of_a_group(group, train_help):
    groups = train_help.partition("Groups")[2].partition("\n\n")[0]
    # What is indented deeper goes on with the choices of the line before.
    (line,) = re.findall(rf"^  {group} .*(?:\n   +.*)*", groups, flags=re.MULTILINE)
    shown = [word.strip("[]") for word in line.split()[1:]]
    assert shown == sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def test_train_shows_the_default_choices(train_help):
    for choice in ("[reformer]", "[python_library]", "[adamw]", "[single]", "[auto]"):
        assert choice in train_help


def test_train_shows_six_worked_examples(train_help):
    assert len(VERBS["train"].examples) == 6
    for what, command in VERBS["train"].examples:
        assert f"# {what}\n  {command}\n" in train_help


def test_train_explains_exit_codes(train_help):
    codes = train_help.partition("Exit codes:\n")[2]
    for code in (DONE, BUG, USER_ERROR, DIVERGED, LEAK, INTERRUPTED):
        assert f"\n  {code} " in f"\n{codes}"


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_help_explains_keys_with_their_defaults(verb, capsys):
    assert main([verb.name, "-h"]) == 0
    out = capsys.readouterr().out
    for key, says in verb.keys.items():
        assert f"\n  {key}=" in out
        assert says in out
    assert "_schema" not in out
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.parametrize(
    "name", ["evaluate", "generate", "export", "consolidate", "import", "architectures"]
)
def test_small_verbs_explain_all_their_keys(name):
    config = compose(hydra_app(name), name, [])
    assert set(VERBS[name].keys) == set(map(str, config))


@pytest.mark.parametrize(("verb", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_examples_compose(verb, example):
    words = shlex.split(example)
    words = words[words.index(verb.name) + 1 :]
    if "-m" in words:  # the first job
        words = [word.split(",")[0] for word in words if word != "-m"]
    config = load_config(verb.name, verb.rewrite(words))
    assert isinstance(config, CONFIGS[verb.name])


@pytest.mark.parametrize("name", ["train", "prepare", "verify"])
def test_train_and_prepare_find_the_same_data(name):
    config = to_dataclass(compose(hydra_app(name), name, []), CONFIGS[name])
    assert config == load_config("train")
