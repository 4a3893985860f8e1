"""`-m`: one process for each job of a sweep.

Hydra's sweeper and launcher choose the jobs; each job is the command a user would type for it.
So a job cannot disturb the next through process groups, memory or generators, and its exit code
is the one that command has.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lsp.cli.verb import Verb
from lsp.core.errors import UserError
from lsp.core.exit_codes import DONE, INTERRUPTED
from lsp.core.ranks import world_size
from lsp.run.compose_errors import Attempt, raise_readable

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def sweep(app: Hydra, verb: Verb, config_name: str, args: argparse.Namespace) -> int:
    """Runs every job and returns the exit code of the sweep.

    A job that fails does not stop the others; one that is interrupted does.

    Returns:
        0 if every job succeeded, `INTERRUPTED` if one was interrupted, otherwise the code of the
        first that failed.

    Raises:
        UserError: A job cannot be composed (found out before the first begins), or several
            processes were started for the sweep.
    """
    if world_size() > 1:
        raise UserError(
            f"--multirun runs its jobs one after the other, and {world_size()} processes were "
            "started for it: start each job with torchrun, without -m"
        )
    typed = list(args.overrides)
    interrupted = False

    def job(config: DictConfig) -> int:
        nonlocal interrupted
        if interrupted:
            return INTERRUPTED
        overrides = [str(word) for word in HydraConfig.get().overrides.task]
        if "run_name" in config and not any(word.startswith("run_name=") for word in overrides):
            swept = [word for word in overrides if word not in typed]
            overrides.append(f"run_name={unique_name(config.run_name, swept)}")
        print(f"job {HydraConfig.get().job.num}: {' '.join(overrides)}", flush=True)
        searchpath = [word for word in typed if word.startswith("hydra.searchpath=")]
        code = _run([verb.name, *_flags(args), *searchpath, *overrides])
        interrupted = code == INTERRUPTED
        return code

    with tempfile.TemporaryDirectory(prefix="lsp-sweep-") as folder:
        # Hydra wants to note the sweep somewhere; each run keeps its own config.yaml.
        words = [f"hydra.sweep.dir={folder}", *typed]
        try:
            batches = app.multirun(config_name, job, words, with_log_configuration=False)
        except Exception as error:
            raise_readable(error, Attempt(app, config_name, typed))
    codes = [ret.return_value for batch in batches or () for ret in batch]
    failed = {number: code for number, code in enumerate(codes) if code != DONE}
    if failed:
        listed = ", ".join(f"job {number} (exit code {code})" for number, code in failed.items())
        print(f"lsp: {len(failed)} of {len(codes)} jobs failed: {listed}", file=sys.stderr)
    return INTERRUPTED if INTERRUPTED in codes else next(iter(failed.values()), DONE)


def unique_name(run_name: str, swept: Iterable[str]) -> str:
    """The same name for the same overrides, another for others, fit for a folder."""
    text = "_".join(word.lstrip("+").replace("=", "-") for word in swept)
    if not text:
        return run_name
    slug = re.sub(r"[^\w.+-]+", "_", text)
    if slug != text or len(slug) > 120:
        slug = f"{slug[:120]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{run_name}-{slug}"


def _flags(args: argparse.Namespace) -> list[str]:
    flags = [word for folder in args.config_dir for word in ("--config-dir", folder)]
    for flag, value in (("--config-name", args.config_name), ("--config-path", args.config_path)):
        flags += [flag, value] if value else []
    return flags


def _run(words: Sequence[str]) -> int:
    """One job in a process of its own, which gets the signals that this one gets."""
    # Its own process group: a Ctrl-C reaches it once, through us, and it can finish its step.
    child = subprocess.Popen([sys.executable, "-m", "lsp", *words], process_group=0)
    with _forwarding(child):
        code = child.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
