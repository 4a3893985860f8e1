"""`lsp architectures`: the table, one row of it, and the same in a file."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lsp.cli.main import main
from lsp.models import registry
from lsp.models.catalog import NATIVE, entries
from lsp.models.hub.keys import known_keys
from lsp.models.hub.table import ROWS
from lsp.run.architecture import describe
from lsp.run.compose import load_train_config
from lsp.run.validate import validate

ROOT = Path(__file__).resolve().parents[2]
KEPT = "benchmarks/results/architectures.md"


def told(capsys, *words: str) -> str:
    assert main(["architectures", *words]) == 0
    return capsys.readouterr().out


def test_table_has_every_architecture_once(capsys):
    text = told(capsys)
    names = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert names.count("architecture") >= 1
    assert [n for n in names if n != "architecture"] == [entry.name for entry in entries()]
    assert f"{len(entries())} architectures" in text


def test_native_rows_are_those_of_the_registry():
    assert {entry.name for entry in NATIVE} == set(registry.ARCHITECTURES) - {"hub"}
    for entry in NATIVE:
        row = registry.get(entry.name)
        assert row.objectives(row.config_class()) == entry.objectives


@pytest.mark.parametrize("entry", NATIVE, ids=[entry.name for entry in NATIVE])
def test_the_first_objective_is_the_usual_one(entry):
    assert load_train_config([entry.selected]).objective.name == entry.objectives[0]


def test_json_is_for_programs(capsys):
    rows = json.loads(told(capsys, "format=json"))
    assert [row["name"] for row in rows] == [entry.name for entry in entries()]
    assert rows[0]["selected"] == f"architecture={rows[0]['name']}"


def test_out_takes_the_table(capsys, tmp_path):
    out = tmp_path / "table.md"
    assert str(out) in told(capsys, "format=markdown", f"out={out}")
    assert "| `reformer` |" in out.read_text()


def test_one_has_its_keys(capsys):
    text = told(capsys, "longformer")
    assert "attention_window=" in text
    assert "lsp train run_name=longformer architecture=longformer" in text


def test_unknown_name_has_the_nearest(capsys):
    assert main(["architectures", "longfomer"]) == 2
    captured = capsys.readouterr()
    assert "did you mean 'longformer'?" in captured.err
    assert captured.out == ""


def test_unwritable_out(capsys, tmp_path):
    assert main(["architectures", f"out={tmp_path / 'no' / 'table.md'}"]) == 2
    assert "table.md cannot be written" in capsys.readouterr().err


def test_kept_table_is_up_to_date(tmp_path):
    """`lsp architectures format=markdown out=…` writes it anew."""
    assert main(["architectures", "format=markdown", f"out={tmp_path / 'new.md'}"]) == 0
    new = (tmp_path / "new.md").read_text().replace(str(tmp_path / "new.md"), KEPT)
    assert (ROOT / KEPT).read_text() == new


def test_one_of_transformers_has_its_published_keys(capsys):
    text = told(capsys, "big_bird")
    assert "BigBirdForMaskedLM" in text
    assert "block_size=64" in text
    assert "architecture=hub architecture.model_type=big_bird" in text


QUICK = ("longformer", "nezha", "llama", "big_bird", "marian", "xlnet", "nystromformer")
EACH = [
    pytest.param(entry, id=entry.name, marks=() if entry.name in QUICK else pytest.mark.slow)
    for entry in entries()
]


@pytest.mark.parametrize("entry", EACH)
def test_command_composes_and_is_valid(entry):
    command = describe(entry).command
    assert command.startswith("lsp train ")
    words = shlex.split(command.removeprefix("lsp train "))
    validate(load_train_config(words))


def test_settings_and_positions_are_published_keys():
    for name, row in ROWS.items():
        named = {*row.settings, *row.causal_settings, row.positions, row.decoder_positions} - {""}
        assert named <= known_keys(name) | {"max_position_embeddings"}, name


@pytest.mark.parametrize("words", [(), ("format=json",)], ids=["text", "json"])
def test_table_imports_no_models(words):
    code = (
        "import sys; from lsp.cli.main import main; "
        f"main(['architectures', *{words!r}]); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.strip().endswith("[]")
