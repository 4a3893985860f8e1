"""`lsp verify packing`, and the short certificate that a training begins with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lsp.checkpointing.store import CheckpointStore, read_state
from lsp.cli.main import main
from lsp.core.exit_codes import DONE, LEAK, USER_ERROR
from lsp.models import registry
from lsp.models.reformer_layers import LocalSelfAttention
from lsp.run import verify
from lsp.verify import cells, variants
from tests.run.tiny import assert_same_run, words

torch.set_num_threads(1)

DROPOUT = [
    "architecture.hidden_dropout_prob=0.1",
    "architecture.local_attention_probs_dropout_prob=0.1",
    "architecture.lsh_attention_probs_dropout_prob=0.1",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves two variants of everything, and whole rows."""
    local, across = (
        next(v for v in variants.VARIANTS if v.attention == attention)
        for attention in ("local", "memory across documents")
    )
    monkeypatch.setattr(cells, "VARIANTS", [replace(local, objectives=("masked",)), across])
    monkeypatch.setattr(verify, "DEGREES", (1,))


@pytest.fixture
def leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the documents of a row visible to each other in local attention."""
    attend = LocalSelfAttention.attend

    def ignorant(self: Any, qkv: Any, memo: Any, *more: Any) -> torch.Tensor:
        kept, memo.segment_ids = memo.segment_ids, None
        out_BLE = attend(self, qkv, memo, *more)
        memo.segment_ids = kept
        return out_BLE

    monkeypatch.setattr(LocalSelfAttention, "attend", ignorant)


def result(path: str = "verified/packing.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


class TestVerb:
    def test_of_a_run(self, capsys):
        assert main(["verify", "packing", "experiment=debug", "verify.out=found.json"]) == DONE
        out = capsys.readouterr().out
        assert "documents apart, causal but for the choice of keys: holds" in out
        assert "written to found.json" in out
        found = result("found.json")
        assert found["holds"]
        assert found["certificate"] == "packing"
        (cell,) = found["cells"]
        assert cell["architecture"] == "reformer"
        assert (cell["memory"], cell["precision"], cell["degree"]) == ("reversible", "fp32", 1)
        assert cell["length"] == 128
        itself = [[number, number] for number in range(1, 5)]
        assert cell["reaches"] == {"values": itself, "gradients": itself}

    def test_of_a_leak(self, leak, capsys):
        assert main(["verify", "packing", "experiment=debug"]) == LEAK
        out = capsys.readouterr().out
        assert "DOES NOT HOLD" in out
        assert "document 1 changes the scores of document 2" in out
        assert "the loss of document 2 has a gradient at document 1" in out
        found = result()
        assert not found["holds"]
        assert [1, 2] in found["cells"][0]["reaches"]["values"]

    def test_of_everything(self, few, capsys):
        assert main(["verify", "packing"]) == DONE
        out = capsys.readouterr().out
        assert "4 hold" in out
        assert "together" in out
        found = result()["cells"]
        assert len(found) == 4 + 3
        assert {cell["memory"] for cell in found} == {"stored", "recomputed", "reversible"}

    def test_a_leak_is_told_by_its_cell(self, few, leak, capsys):
        assert main(["verify", "packing"]) == LEAK
        out = capsys.readouterr().out
        assert "4 of 4 FAIL" in out
        assert "reformer, local, masked, reversible, bf16" in out

    def test_starts_the_processes_that_share_rows(self, monkeypatch):
        from tests.processes import forkserver

        forkserver()  # where torch is imported already
        monkeypatch.setattr(verify, "START_METHOD", "forkserver")
        typed = ["experiment=debug", "parallelism.sequence=2", "objective=masked"]
        assert main(["verify", "packing", *typed]) == DONE
        (cell,) = result()["cells"]
        assert cell["degree"] == 2
        assert (cell["documents"], cell["in_time"]) == ("apart", "both ways")

    def test_of_the_phases_of_a_run(self):
        phase = "{steps: 9, sequence_length: %d, attention_window: %d, warmup_steps: 1}"
        phases = ", ".join(phase % values for values in ((64, 8), (128, 32)))
        tiny = ["architecture.hidden_size=32", "architecture.num_hidden_layers=1"]
        typed = ["experiment=longformer_staged", f"phases=[{phases}]", *tiny]
        assert main(["verify", "packing", *typed, "verify.length=64"]) == DONE
        assert [cell["length"] for cell in result()["cells"]] == [64, 64]

    @pytest.mark.slow
    def test_of_everything_in_full(self):
        assert main(["verify", "packing"]) == DONE
        found = result()["cells"]
        assert {cell["architecture"] for cell in found} == set(registry.ARCHITECTURES)
        assert {cell["degree"] for cell in found} == {1, 2}

    @pytest.mark.parametrize(
        ("typed", "says"),
        [
            (["pakcing"], "did you mean 'packing'"),
            (["resume"], "choose one of packing"),
            (["packing", "architecture.attn_layers=[lhs]"], "lsh"),
            (["packing", "experiment=debug", "sequence_length=100"], "use 96 or 112"),
            (["packing", "experiment=debug", "verify.length=100"], "use 96 or 112"),
            (["packing", "experiment=debug", "verify.length=256"], "sequence_length=128"),
            (["packing", "experiment=debug", "parallelism.sequence=3"], "parallelism.sequence=3"),
            (["packing", "architecture=transformer_xl", "objective=masked"], "causal"),
        ],
    )
    def test_mistakes_are_told(self, typed, says, capsys):
        assert main(["verify", *typed]) == USER_ERROR
        assert says in capsys.readouterr().err
        assert not Path("verified").exists()

    def test_a_result_that_cannot_be_written(self, capsys):
        Path("file").touch()
        typed = ["packing", "experiment=debug", "verify.out=file/found.json"]
        assert main(["verify", *typed]) == USER_ERROR
        assert "verify.out=file/found.json" in capsys.readouterr().err


class TestTraining:
    def test_is_bit_for_bit_the_same_with_and_without(self, tmp_path, corpus, capsys):
        for name, asked in (("with", "true"), ("without", "false")):
            overrides = [*DROPOUT, f"verify.at_start={asked}", "trainer.max_steps=4"]
            assert main(["train", *words(tmp_path, corpus, *overrides, name=name)]) == DONE
            said = capsys.readouterr().err
            assert ("certificate: documents apart" in said) == (name == "with")
        assert_same_run(tmp_path / "with", tmp_path / "without")
        states = {}
        for name in ("with", "without"):
            step_dir = CheckpointStore(tmp_path / name).latest()
            assert step_dir is not None
            states[name] = read_state(step_dir), load_file(step_dir / "rng-00000.safetensors")
        generators = [generator for _, generator in states.values()]
        assert all(torch.equal(generators[0][key], generators[1][key]) for key in generators[0])
        assert states["with"][0]["certificate"] == {
            "result": "documents apart, causal but for the choice of keys",
            "length": 128,
            "device": "cpu",
            "precision": "fp32",
        }
        assert states["without"][0]["certificate"] is None

    def test_a_model_that_leaks_is_refused(self, tmp_path, corpus, leak, capsys):
        typed = words(tmp_path, corpus, "verify.at_start=true", "trainer.max_steps=3")
        assert main(["train", *typed]) == LEAK
        said = capsys.readouterr().err
        assert "document 1 changes the scores of document 2" in said
        assert "Traceback" not in said
        assert CheckpointStore(tmp_path / "run").latest() is None
        typed = words(tmp_path, corpus, "verify.at_start=false", "trainer.max_steps=3")
        assert main(["train", *typed]) == DONE

    def test_a_model_that_sees_nothing_is_trained_and_told(
        self, tmp_path, corpus, monkeypatch, capsys
    ):
        attend = LocalSelfAttention.attend
        monkeypatch.setattr(LocalSelfAttention, "attend", lambda *words: 0 * attend(*words))
        overrides = ["architecture.attn_layers=[local]", "verify.at_start=true"]
        typed = words(tmp_path, corpus, *overrides, "trainer.max_steps=3")
        assert main(["train", *typed]) == DONE
        assert "certificate: not certified: earlier tokens are not seen" in capsys.readouterr().err
