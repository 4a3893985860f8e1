"""Two processes that were started differently: refused before the first step, told once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lsp.core.exit_codes import DONE, USER_ERROR
from tests.distributed.spawn import environment, free_port
from tests.processes import Session
from tests.run.tiny import words, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("shared") / "corpus")


def other_source() -> None:
    """As if another version of the code lay on this host."""
    patch("lsp.run.preflight.source_digest", lambda: "0" * 64)


def other_tiles() -> None:
    """As if this process chose its tiles by something that the others do not have."""
    from lsp.models.memory import MemoryConfig

    MemoryConfig.tile_bytes = lambda self, device_type: 4096  # type: ignore[method-assign]


def other_share() -> None:
    from lsp.data.batches import Share

    patch("lsp.run.build.Share", lambda *given: Share(*given[:3], 1, *given[4:]))


def other_versions() -> None:
    from lsp.core.versions import versions

    found = versions() | {"torch": "1.13.0"}
    patch("lsp.run.preflight.versions", lambda: found)


def other_collectives() -> None:
    """As if a micro-batch here had a collective that the others have not."""
    counts = iter([3, 8])
    patch("lsp.parallel.rehearsal._collectives", lambda: next(counts))


def patch(name: str, value: object) -> None:
    pytest.MonkeyPatch().setattr(name, value)


def launch(
    folder: Path,
    typed: list[str],
    others: list[str],
    before: Callable[[], None] | None = None,
) -> list[Session]:
    """Rank 1 is given other words, or does something before it starts."""
    port = free_port()
    return [
        Session(["train", *typed], folder / "0.log", None, environment(0, 2, port)),
        Session(["train", *others], folder / "1.log", before, environment(1, 2, port)),
    ]


@pytest.mark.parametrize(
    ("override", "before", "told"),
    [
        ("optimizer.learning_rate=0.5", None, "optimizer.learning_rate: 0.001 on rank 0, 0.5 on"),
        ("memory.head_tiles=3", None, "memory.head_tiles: 0 on rank 0, 3 on rank 1"),
        ("trainer.max_steps=13", None, "trainer.max_steps: 12 on rank 0, 13 on rank 1"),
        (None, other_versions, "version of torch: "),
        (None, other_source, "digest of lsp's sources: \""),
        (None, other_share, "rows of a micro-batch: 2 on rank 0, 1 on rank 1"),
        (None, other_tiles, "pieces of the head: 1 on rank 0, "),
        (None, other_collectives, "collectives of a micro-batch: 0 on rank 0, 5 on rank 1"),
    ],
    ids=["rate", "tiles", "steps", "packages", "source", "share", "plan", "collectives"],
)
def test_a_difference_is_told_once_and_ends_both(tmp_path, corpus, override, before, told):
    typed = words(tmp_path, corpus, "parallelism=ddp")
    others = words(tmp_path, corpus, "parallelism=ddp", *([override] if override else []))
    sessions = launch(tmp_path, typed, others, before)
    assert [session.wait() for session in sessions] == [USER_ERROR, USER_ERROR]
    assert [s.output.count("not about to do the same") for s in sessions] == [1, 0]
    assert told in sessions[0].output
    assert all("Traceback" not in session.output for session in sessions)


def test_the_folder_of_runs_has_to_be_shared(tmp_path, corpus):
    typed = words(tmp_path / "here", corpus, "parallelism=ddp")
    others = words(tmp_path / "there", corpus, "parallelism=ddp")
    sessions = launch(tmp_path, typed, others, partial(patch, f"{MODULE}.VISIBLE_WITHIN", 0.5))
    assert [session.wait() for session in sessions] == [USER_ERROR, USER_ERROR]
    assert "checkpoint.root: " in sessions[0].output
    assert "is not the same folder for every process: rank 1 (" in sessions[0].output
    assert "Traceback" not in sessions[0].output + sessions[1].output


MODULE = "lsp.parallel.agreement"


def test_what_only_says_where_things_lie_may_differ(tmp_path, corpus):
    (tmp_path / "runs").mkdir()
    (tmp_path / "mounted").symlink_to(tmp_path / "runs")
    given = ["parallelism=ddp", "trainer.max_steps=3", "trainer.eval_every=0"]
    typed = words(tmp_path / "runs", corpus, *given)
    others = words(tmp_path / "mounted", corpus, *given, "data.num_processes=2")
    sessions = launch(tmp_path, typed, others)
    assert [session.wait() for session in sessions] == [DONE, DONE], sessions[0].output
    assert not list((tmp_path / "runs" / "run").glob(".seen*"))
