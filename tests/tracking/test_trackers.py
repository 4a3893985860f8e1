"""Where metrics go, and what is left of them after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lsp.core.errors import UserError
from lsp.tracking.config import TrackingConfig
from lsp.tracking.tracker import JsonlTracker, make_trackers, read_rows


def write(path: Path, steps: range, resumed_step: int = 0) -> None:
    tracker = JsonlTracker(path, resumed_step)
    for step in steps:
        tracker.log(step, {"loss": step / 3})
    tracker.close()


def test_floats_in_full_precision(tmp_path):
    value = 0.1 + 0.2
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", 0)
    tracker.log(1, {"loss": value, "tokens": 2**53 + 1, "gradient_norm": None})
    # Readable while the run goes on.
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": value, "tokens": 2**53 + 1, "gradient_norm": None}
    ]
    tracker.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_null(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, 0)
    tracker.log(1, {"loss": value})
    tracker.close()
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"step": 1, "loss": None}


def test_rows_beyond_the_resumed_step_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 8))
    write(path, range(5, 10), resumed_step=4)
    assert [row["step"] for row in read_rows(path)] == list(range(1, 10))
    assert [row["loss"] for row in read_rows(path)] == [step / 3 for step in range(1, 10)]


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 4, "lo', b"{", b"\0\0\0\0", b"\xff\xfe", b'{"step": 4, "loss": 1.5'],
    ids=["in-a-key", "first-byte", "zeros", "not-utf8", "last-byte-missing"],
)
def test_torn_last_line_is_left_out(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    with path.open("ab") as file:
        file.write(torn)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    write(path, range(4, 6), resumed_step=3)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 5]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed, steps in ((0, range(1, 6)), (3, range(4, 7))):
        trackers = make_trackers(TrackingConfig(name="tensorboard"), tmp_path, {}, resumed)
        for step in steps:
            for tracker in trackers:
                tracker.log(step, {"loss": step + resumed / 10, "reversible_drift": None})
        for tracker in trackers:
            tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    found = {event.step: event.value for event in events.Scalars("loss")}
    assert found == pytest.approx({1: 1, 2: 2, 3: 3, 4: 4.3, 5: 5.3, 6: 6.3})
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 6


def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for resumed, steps in ((0, range(1, 4)), (2, range(3, 5))):
        config = TrackingConfig(name="wandb")
        trackers = make_trackers(config, tmp_path, {"seed": 0}, resumed)
        for step in steps:
            for tracker in trackers:
                tracker.log(step, {"loss": step / 2, "gradient_norm": None})
        ids.append(trackers[1].run.id)
        for tracker in trackers:
            tracker.close()
    assert ids[0] == ids[1]
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*/run-{ids[0]}.wandb"))) == 2
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 4


def test_wandb_that_cannot_start_is_a_users_mistake(tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"tracking.mode=online: .*No API key.*mode=offline"):
        make_trackers(TrackingConfig(name="wandb", mode="online"), tmp_path, {}, 0)


@pytest.mark.parametrize("values", [{"name": "wandbb"}, {"mode": "on"}], ids=["name", "mode"])
def test_config_refuses(values):
    ((key, value),) = values.items()
    with pytest.raises(UserError, match=f"tracking.{key}={value}"):
        TrackingConfig(**values)
