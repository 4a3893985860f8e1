"""A run whose memory does not suffice: told before the first step, with what would suffice."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path

import pytest

from lsp.core.exit_codes import DONE, USER_ERROR
from tests.processes import Session
from tests.run.tiny import words

ROOM = 250 * 2**20

# Stored activations of 200 MiB, of which a reversible stack keeps next to nothing.
LARGE = [
    "sequence_length=2048",
    "tokens_per_step=8192",
    "architecture.attn_layers=[local,lsh,local,lsh,local,lsh]",
    "architecture.hidden_size=128",
    "architecture.feed_forward_size=512",
    "memory=stored",
    "trainer.max_steps=3",
    "trainer.eval_every=0",
    "checkpoint.every=0",
    "checkpoint.asynchronous=false",
]


def limit(room: int) -> None:
    """Lets the address space of this process grow by so many bytes and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_the_first_advice_is_enough(tmp_path, corpus):
    typed = ["train", *words(tmp_path, corpus, *LARGE)]
    session = Session(typed, tmp_path / "0.log", partial(limit, ROOM))
    assert session.wait(120) == USER_ERROR, session.output
    told = session.output
    assert "out of memory on rank 0 (cpu), dry run before the first step (" in told
    assert "what layers keep (memory=stored)" in told
    assert "step 1/" not in told
    assert "Traceback" not in told
    advice = told.split("most effective first:\n")[1].split()[0]
    assert advice == "memory=reversible"
    typed = ["train", *words(tmp_path, corpus, *LARGE, advice, name="advised")]
    advised = Session(typed, tmp_path / "1.log", partial(limit, ROOM))
    assert advised.wait(120) == DONE, advised.output
