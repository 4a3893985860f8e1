"""Reports of where processes stand; `tests/distributed/test_watchdog.py` has real ones."""

import time

import pytest

from lsp.parallel import stall
from lsp.parallel.stall import Collective, Report, report, summary
from lsp.parallel.watchdog import Watchdog, lost_contact


def _report(rank: int, number: int, waiting: bool, phase: str = "step 3: saving") -> Report:
    return Report(rank, phase, 9.0, collectives={"0": Collective(number, "gloo:x", waiting)})


def test_a_report_survives_the_file():
    mine = report(3, "step 1: fetching the rows", 2.0, "4..7")
    assert Report.from_json(mine.to_json()) == mine
    assert any("test_a_report_survives_the_file" in call for call in mine.stack)
    assert "samples          4..7" in mine.text("why")


def test_the_last_collective_is_told():
    mine = Report(1, "x", 2.0, collectives={"0": Collective(7, "gloo:broadcast", True)}, newest="0")
    assert "last collective  #7 gloo:broadcast of group 0, waiting in it" in mine.text("why")


def test_who_is_behind():
    reports = [_report(0, 5, True), _report(1, 4, False), _report(2, 5, True)]
    assert (
        "rank 1 has not entered collective #5 (gloo:x) of group 0 that ranks 0, 2 wait in"
        in summary(reports, 3)
    )
    assert "left no report" not in summary(reports, 3)
    assert "ranks 3-4 have left no report" in summary(reports, 5)


def test_phases_are_told_apart_where_torch_keeps_no_record(monkeypatch):
    monkeypatch.setattr(stall, "_flight_record", list)
    assert report(0, "x", 1.0, "").collectives == {}
    reports = [Report(0, "step 3: counting", 9.0), Report(1, "step 3: fetching", 9.0)]
    assert summary(reports, 2) == "  rank 0: step 3: counting\n  rank 1: step 3: fetching"


def test_a_process_alone_is_not_stalled_while_it_computes(tmp_path):
    watchdog = Watchdog(0.2, tmp_path)
    end = time.process_time() + 0.4
    while time.process_time() < end:
        pass
    assert not watchdog._stalled(time.monotonic())
    time.sleep(0.3)
    watchdog.phase("next")
    assert not watchdog._stalled(time.monotonic())
    time.sleep(0.3)
    assert watchdog._stalled(time.monotonic())
    among_others = Watchdog(0.2, tmp_path, 0, 2)
    assert among_others._stalled(time.monotonic() + 1)


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_nothing_is_left_behind(tmp_path, seconds):
    watchdog = Watchdog(seconds, tmp_path / ".watchdog")
    with watchdog:
        watchdog.phase("something", range(3, 5))
        assert watchdog.samples == "3..4"
    assert not list(tmp_path.iterdir())
    assert watchdog._thread is None


def test_what_counts_as_a_lost_contact():
    assert lost_contact(RuntimeError("[x/gloo/transport/tcp/pair.cc:1] Connection closed by peer"))
    assert not lost_contact(RuntimeError("shapes do not match"))
    assert not lost_contact(ValueError("Connection closed by peer"))
