"""What a person sees."""

import sys

from lsp.training.console import TrainingConsole

METRICS = {"loss": 1.25, "bits_per_byte": 1.5, "learning_rate": 1e-3, "gradient_norm": None}


def test_plain_lines_where_there_is_no_terminal(capsys):
    console = TrainingConsole(10, 0, enabled=True)
    console.start()
    console.say("hello")
    console.step(1)
    console.metrics(1, METRICS)
    console.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "hello\nstep 1/10  loss 1.2500  1.500 bits/byte  lr 1.00e-03\n"


def test_other_processes_are_silent(capsys):
    console = TrainingConsole(10, 0, enabled=False)
    console.start()
    console.say("hello")
    console.metrics(1, METRICS)
    console.close()
    assert capsys.readouterr() == ("", "")


def test_a_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console = TrainingConsole(10, 4, enabled=True)
    console.say("before the bar [brackets are not markup]")
    console.start()
    console.step(5)
    console.metrics(5, METRICS)
    console.close()
    err = capsys.readouterr().err
    assert "[brackets are not markup]" in err
    assert "5/10" in err
    assert "loss 1.2500" in err
