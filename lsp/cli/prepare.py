"""`lsp prepare`: documents become packed shards, as `lsp train` would make them itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsp.cli.verb import Verb
from lsp.core.exit_codes import DONE

if TYPE_CHECKING:
    from lsp.run.config import RunConfig


def run(config: RunConfig) -> int:
    """Refuses lengths that do not fit the architecture, then prepares."""
    from lsp.run.parts import prepare_data
    from lsp.run.phases import check_each, each_phase
    from lsp.run.validate import validate_data

    check_each(config, validate_data)
    for phase in each_phase(config):
        prepare_data(phase)
    return DONE


VERB = Verb(
    name="prepare",
    summary="turn documents into packed shards (lsp train does so by itself)",
    examples=(
        (
            "text files, with a vocabulary learnt from them",
            "lsp prepare data=text 'data.paths=[corpus/*.txt]' tokenizer=bpe",
        ),
        (
            "one JSON document in a line, whole documents in long rows",
            "lsp prepare data=jsonl 'data.paths=[corpus/*.jsonl.gz]' sequence_length=16384",
        ),
        (
            "a dataset of the Hub, streamed, its first documents",
            "lsp prepare data=hub_dataset data.name=NAME data.streaming=true "
            "data.max_documents=100000",
        ),
    ),
    keys={
        "sequence_length": "tokens in a row",
        "data.paths": "files, globs or folders (text, jsonl, parquet)",
        "data.field": "field or column of the text (jsonl, parquet, hub_dataset)",
        "data.document": "one document of a text file: file, line or paragraph",
        "data.validation_fraction": "share of documents held out",
        "data.max_bytes": "stop after so many bytes of text",
        "data.num_processes": "processes that tokenize, 0 for one per core",
        "data.cache_root": "folder of prepared corpora",
        "packing.align_documents": "documents begin on chunk boundaries",
        "packing.append_eos": "documents end with the end-of-sequence token",
    },
    run=run,
    exit_codes={},
)
