"""What `parallelism=auto` chooses, and what it says."""

from __future__ import annotations

import pytest
import torch

from lsp.core.exit_codes import DONE
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.runtime import Runtime
from lsp.parallel.strategy import Situation, candidates, choose, free_host_bytes, resolve
from lsp.run.build import run_training
from lsp.run.compose import load_train_config, read_yaml
from tests.run.tiny import curve, words, write_corpus
from tests.training.tiny import LENGTH, reformer

GIB = 2**30
BILLION = 10**9


def situation(parameters: float, processes: int = 8, **values) -> Situation:
    settings = {
        "precision": "bf16",
        "optimizer": "AdamW",
        "device_bytes": 80 * GIB,
        "host_bytes": 128 * GIB,
        "activations": 24 * GIB,  # which leaves 48 of the 80, less a tenth
    }
    return Situation(int(parameters * BILLION), processes, **settings | values)


def chosen(made: Situation) -> str:
    return choose(made, bucket=50_000_000, live=100_000_000).strategy


@pytest.mark.parametrize(
    ("made", "strategy"),
    [
        (situation(1, 1), "single"),
        (situation(4, 1), "zero3_offload"),
        (situation(4, 1, precision="fp16"), "zero2_offload"),
        (situation(1), "ddp"),
        (situation(5), "zero2"),
        (situation(4, precision="fp32"), "zero1"),
        (situation(15), "zero3"),
        (situation(20), "zero3_offload"),
        (situation(20, precision="fp16"), "zero2_offload"),
        (situation(30), "zero3_offload"),
        # Offload is no help on a CPU, nor where the host has no room.
        (situation(20, host_bytes=0), "zero3"),
        (situation(20, host_bytes=10 * GIB), "zero3"),
        (situation(60), "zero3"),
        (situation(60, nvme=True), "zero3_nvme"),
        # Others than AdamW need whole matrices.
        (situation(60, optimizer="Muon"), "ddp"),
        (situation(60, 1, optimizer="Adafactor"), "single"),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{v.parameters / BILLION:g}B-{v.processes}",
)
def test_the_first_that_fits(made, strategy):
    assert chosen(made) == strategy


def test_more_processes_never_need_a_leaner_strategy():
    order = candidates(situation(1, precision="fp32"))
    for parameters in (0.5, 2, 8, 30):
        made = [
            order.index(chosen(situation(parameters, n, precision="fp32"))) for n in (2, 4, 16, 64)
        ]
        assert made == sorted(made, reverse=True)


def test_the_reason_has_the_numbers():
    reason = choose(situation(5), bucket=50_000_000, live=100_000_000).reason
    assert "auto chose zero2 for 5,000,000,000 parameters on 8 process(es)" in reason
    assert "ddp 74.51 GiB would not fit" in reason
    room = "may take 48.00 GiB of 80.00 GiB that are free (beside 24.00 GiB of activations)"
    assert room in reason
    assert "nor is this sure to fit" not in reason
    blind = choose(situation(5, activations=0), bucket=50_000_000, live=100_000_000).reason
    assert "may take 43.20 GiB of 80.00 GiB that are free (at most 60%, beside" in blind
    lost = choose(situation(900), bucket=50_000_000, live=100_000_000)
    assert "nor is this sure to fit" in lost.reason


def test_resolve_measures_this_machine():
    model, place = reformer(), Runtime(torch.device("cpu"), 0, 1)
    auto, fp32 = ParallelismConfig("auto"), PrecisionConfig()
    choice = resolve(auto, fp32, "AdamW", model, place, rows=2, length=LENGTH)
    assert choice.strategy == "single"
    parameters = sum(p.numel() for p in model.parameters())
    assert f"for {parameters:,} parameters on 1 process(es)" in choice.reason
    assert "of activations)" in choice.reason


def test_memory_of_a_container(tmp_path):
    whole = free_host_bytes(tmp_path)
    assert whole > 0
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert abs(free_host_bytes(tmp_path) - whole) < GIB
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_host_bytes(tmp_path) == 4000
    (tmp_path / "memory.max").write_text("500\n")
    assert free_host_bytes(tmp_path) == 0


def test_a_run_says_what_was_chosen_and_resumes(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus")
    typed = words(tmp_path, corpus, "parallelism=auto", "trainer.max_steps=4", "checkpoint.every=2")
    assert run_training(load_train_config(typed)) == DONE
    assert "parallelism: auto chose single for" in capsys.readouterr().err
    assert read_yaml(tmp_path / "run" / "config.yaml").parallelism.strategy == "single"
    longer = words(tmp_path, corpus, "parallelism=auto", "trainer.max_steps=6")
    assert run_training(load_train_config(longer)) == DONE
    assert [row["step"] for row in curve(tmp_path / "run")][-1] == 6
