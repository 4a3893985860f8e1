"""What workers tell their launcher as they leave."""

from contextlib import suppress

import pytest

from lsp.cli import main as cli
from lsp.core import exit_file
from lsp.core.errors import UserError


@pytest.fixture
def lines(tmp_path, monkeypatch):
    path = tmp_path / "codes"
    path.touch()
    monkeypatch.setenv("LSP_EXIT_FILE", str(path))
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    return lambda: path.read_text().splitlines()


def leave(monkeypatch, how) -> None:
    def dispatch(words):
        if isinstance(how, BaseException):
            raise how
        return how

    monkeypatch.setattr(cli, "_dispatch", dispatch)
    with suppress(SystemExit, KeyError):
        cli.main(["train"])


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (0, "0 0"),
        (75, "0 75"),
        (UserError("told"), "0 2"),
        (SystemExit(76), "0 76"),
        (SystemExit("words"), "0 1"),
        (KeyError("a bug"), "0 1"),
        (KeyboardInterrupt(), "0 130"),
    ],
    ids=str,
)
def test_every_way_to_leave_is_recorded(lines, monkeypatch, how, line):
    leave(monkeypatch, how)
    assert lines() == [line]


def test_attempts_are_told_apart(lines, monkeypatch):
    leave(monkeypatch, 76)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    leave(monkeypatch, 0)
    assert lines() == ["0 76", "1 0"]


@pytest.mark.parametrize("code", [2, 3])
def test_what_would_only_repeat_itself_is_not_tried_again(lines, monkeypatch, code):
    leave(monkeypatch, code)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(cli, "_dispatch", lambda words: pytest.fail("it began again"))
    assert cli.main(["train"]) == code
    assert lines() == [f"0 {code}"]


@pytest.mark.parametrize("code", [0, 1, 75, 76])
def test_everything_else_is(lines, monkeypatch, code):
    leave(monkeypatch, code)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert exit_file.settled() is None


def test_nothing_is_asked_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.delenv("LSP_EXIT_FILE", raising=False)
    leave(monkeypatch, 0)
    monkeypatch.setenv("LSP_EXIT_FILE", str(tmp_path / "gone" / "codes"))
    leave(monkeypatch, 0)
    assert exit_file.settled() is None
