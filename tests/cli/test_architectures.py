"""`lsp architectures`: the table, one row of it, and the same in a file."""

import json
import subprocess
import sys

import pytest

from lsp.cli.main import main
from lsp.models import registry
from lsp.models.catalog import NATIVE, entries


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


@pytest.mark.parametrize("words", [(), ("format=json",)], ids=["text", "json"])
def test_table_imports_no_models(words):
    code = (
        "import sys; from lsp.cli.main import main; "
        f"main(['architectures', *{words!r}]); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.strip().endswith("[]")
