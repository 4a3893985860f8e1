"""What may change between the sessions of a run, and how the rest is refused."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from lsp.checkpointing.store import CheckpointStore
from lsp.cli.main import main
from lsp.core.exit_codes import DONE, USER_ERROR
from lsp.tracking.tracker import read_rows
from tests.run.tiny import tensors, words, write_corpus

STEPS = "trainer.max_steps=4"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The root of a run that stands at step 4."""
    root = tmp_path_factory.mktemp("trained")
    assert main(["train", *words(root, corpus, STEPS)]) == DONE
    return root


def refused(capsys: pytest.CaptureFixture[str], typed: list[str], warnings: int = 0) -> str:
    """The line that a refusal consists of, after some warnings."""
    capsys.readouterr()
    assert main(["train", *typed]) == USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lsp: ")]
    assert len(lines) == warnings + 1
    return lines[-1]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=7", "seed was 0, now 7"),
        ("sequence_length=256", "sequence_length was 128, now 256"),
        ("tokens_per_step=256", "tokens_per_step was 512, now 256"),
        ("architecture.hidden_size=64", "architecture.hidden_size was 32, now 64"),
        ("architecture.num_hashes=4", "architecture.num_hashes was 1, now 4"),
        ("objective=masked", "objective.name was causal, now masked"),
        ("tokenizer=word", "tokenizer.kind was bytes, now word"),
        ("packing=one_per_row", "packing.strategy was best_fit, now one_per_row"),
        ("data.document=line", "data.document was file, now line"),
        ("data.max_documents=5", "data.max_documents was None, now 5"),
        ("optimizer=adafactor", "optimizer.name was adamw, now adafactor"),
    ],
)
def test_what_must_not_change_is_refused(trained, corpus, capsys, override, told):
    line = refused(capsys, words(trained, corpus, STEPS, override))
    assert "run_name=run is at step 4 with another configuration: " in line
    assert told in line


@pytest.mark.parametrize("override", ["tokenizer=bpe", "data.max_documents=5", "seed=3"])
def test_refused_before_data_is_prepared(trained, corpus, capsys, tmp_path, override):
    cache = f"data.cache_root={tmp_path / 'prepared'}"
    refused(capsys, words(trained, corpus, STEPS, cache, override))
    assert not (tmp_path / "prepared").exists()


def test_what_may_change_does(trained, corpus, tmp_path, capsys):
    root = Path(shutil.copytree(trained, tmp_path / "root"))
    changed = [
        "trainer.max_steps=7",
        "trainer.log_every=2",
        "trainer.micro_batch=2",
        "trainer.gradient_clip=0.5",
        "checkpoint.every=3",
        "checkpoint.keep_last=5",
        "tracking=tensorboard",
        "memory=stored",
        "precision=bf16",
        "optimizer.learning_rate=5e-4",
        "schedule=linear",
        "parallelism.timeout_seconds=60",
        "data.num_processes=2",
    ]
    assert main(["train", *words(root, corpus, *changed)]) == DONE
    assert "resuming" in capsys.readouterr().err
    assert CheckpointStore(root / "run").steps() == [4, 6, 7]
    steps = [row["step"] for row in read_rows(root / "run" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 6, 7]
    assert list((root / "run" / "tensorboard").iterdir())


def test_a_run_that_is_done_stays_as_it_is(trained, corpus, capsys):
    run = trained / "run"
    newest = CheckpointStore(run).path(4) / "manifest.json"
    before = (run / "metrics.jsonl").read_text(), newest.stat().st_mtime_ns
    assert main(["train", *words(trained, corpus, STEPS)]) == DONE
    assert "is done: it is at step 4; a higher trainer.max_steps goes on" in capsys.readouterr().err
    assert ((run / "metrics.jsonl").read_text(), newest.stat().st_mtime_ns) == before


def test_resume_never(trained, corpus, tmp_path, capsys):
    never = "checkpoint.resume=never"
    line = refused(capsys, words(trained, corpus, STEPS, never))
    assert "checkpoint.resume=never but" in line
    assert "at step 4; choose another run_name" in line
    assert main(["train", *words(tmp_path, corpus, "trainer.max_steps=3", never)]) == DONE


def test_resume_must(trained, corpus, tmp_path, capsys):
    must = "checkpoint.resume=must"
    line = refused(capsys, words(tmp_path, corpus, STEPS, must))
    assert "checkpoint.resume=must but" in line
    assert "holds no checkpoint; check run_name" in line
    assert main(["train", *words(trained, corpus, STEPS, must)]) == DONE


def test_data_that_moved_or_changed_on_disk(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus", files=12)
    assert main(["train", *words(tmp_path, corpus, STEPS)]) == DONE
    moved = corpus.rename(tmp_path / "elsewhere")
    assert main(["train", *words(tmp_path, moved, "trainer.max_steps=5")]) == DONE
    (moved / "03.txt").write_text("other words " * 50)
    line = refused(capsys, words(tmp_path, moved, STEPS))
    assert "the data changed since step-00000005 was saved (" in line
    assert "Restore the source files, or choose another run_name" in line


def test_vocabulary_that_changed_on_disk(trained, corpus, tmp_path, capsys):
    learnt = words(tmp_path, corpus, STEPS, "tokenizer=word", name="learnt")
    assert main(["train", *learnt]) == DONE
    tokenizer = Path(shutil.copytree(trained / "run" / "tokenizer", tmp_path / "tokenizer"))
    typed = words(
        tmp_path, corpus, STEPS, "tokenizer=pretrained", f"tokenizer.name={tokenizer}", name="given"
    )
    assert main(["train", *typed]) == DONE
    shutil.rmtree(tokenizer)
    shutil.copytree(tmp_path / "learnt" / "tokenizer", tokenizer)
    line = refused(capsys, typed)
    assert "architecture.vocab_size was 260, now " in line


def test_a_tokenizer_of_a_start_that_came_to_nothing_is_replaced(tmp_path, corpus):
    run = tmp_path / "run"
    (run / "tokenizer").mkdir(parents=True)
    (run / "tokenizer" / "stale.json").touch()
    (run / ".tokenizer.aside").mkdir()
    assert main(["train", *words(tmp_path, corpus, "trainer.max_steps=3")]) == DONE
    assert not (run / "tokenizer" / "stale.json").exists()
    assert (run / "tokenizer" / "tokenizer_config.json").exists()
    assert not (run / ".tokenizer.aside").exists()


def test_two_processes_in_one_run(trained, corpus, capsys):
    with (trained / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refused(capsys, words(trained, corpus, STEPS))
    assert f"another process is training in {trained / 'run'}" in line


def test_a_file_system_without_locks(trained, corpus, capsys, monkeypatch):
    def unsupported(file, flags):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert main(["train", *words(trained, corpus, STEPS)]) == DONE
    assert "cannot be locked; train there with one command" in capsys.readouterr().err


def test_root_that_cannot_be_written(corpus, tmp_path, capsys):
    (tmp_path / "file").touch()
    line = refused(capsys, words(tmp_path / "file" / "checkpoints", corpus, STEPS))
    assert "checkpoint.root: " in line
    assert "cannot be written (Not a directory); name a folder that can" in line


def test_damaged_checkpoint_falls_back_and_is_set_aside(trained, corpus, tmp_path, capsys):
    root = Path(shutil.copytree(trained, tmp_path / "root"))
    run, more = root / "run", words(root, corpus, "trainer.max_steps=6", "checkpoint.every=2")
    assert main(["train", *more]) == DONE
    capsys.readouterr()
    os.truncate(run / "step-00000006" / "optimizer-00001.safetensors", 1000)
    good = tensors(run)
    assert (
        main(["train", *words(root, corpus, "trainer.max_steps=8", "checkpoint.every=2")]) == DONE
    )
    error = capsys.readouterr().err
    assert "step-00000006 is damaged (optimizer-00001.safetensors has 1000 bytes" in error
    assert f"resuming {run} at step 4" in error
    assert (run / "step-00000006.damaged").is_dir()
    assert CheckpointStore(run).steps()[-2:] == [6, 8]
    assert good.keys() == tensors(run).keys()


def test_nothing_readable_left(trained, corpus, tmp_path, capsys):
    root = Path(shutil.copytree(trained, tmp_path / "root"))
    (root / "run" / "step-00000004" / "manifest.json").unlink()
    line = refused(capsys, words(root, corpus, STEPS), warnings=1)
    assert "none of the 1 checkpoint(s) in" in line
    assert "choose another run_name" in line


def test_data_without_validation_documents(tmp_path, corpus, capsys):
    none = words(tmp_path, corpus, STEPS, "data.validation_fraction=0")
    assert main(["train", *none]) == DONE
    out, err = capsys.readouterr()
    assert "no validation documents; nothing is evaluated" in err
    assert "validation:" not in out
    assert (tmp_path / "run" / "loss.png").exists()


def test_end_of_a_run_says_what_comes_next(tmp_path, corpus, capsys):
    sampling = "trainer.sample_tokens=8"
    for objective, packing in (("causal", "best_fit"), ("masked", "one_per_row")):
        objectives = [f"objective={objective}", f"packing={packing}"]
        typed = words(tmp_path, corpus, STEPS, sampling, *objectives, name=objective)
        assert main(["train", *typed]) == DONE
        out = capsys.readouterr().out
        assert f"lsp export   run={tmp_path / objective}" in out
        assert ("lsp generate" in out) == ("sample:" in out) == (objective == "causal")
        assert ("bits per byte after 4 steps" in out) == (objective == "causal")


def test_masked_needs_a_mask_token(trained, corpus, tmp_path, capsys):
    import json

    tokenizer = Path(shutil.copytree(trained / "run" / "tokenizer", tmp_path / "tokenizer"))
    for path in tokenizer.glob("*.json"):
        values = json.loads(path.read_text())
        values.pop("mask_token", None)
        path.write_text(json.dumps(values))
    typed = words(
        tmp_path, corpus, "objective=masked", "tokenizer=pretrained", f"tokenizer.name={tokenizer}"
    )
    assert "objective=masked needs a tokenizer with a mask token" in refused(capsys, typed)
