"""The model card of an export: how to use it, and the evidence that it is what it says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lsp.core.objectives import DECODER
from lsp.hub.comparison import TOLERANCE, Comparison
from lsp.hub.form import PublishedForm
from lsp.models.transformer_xl_config import UNLIMITED


@dataclass(frozen=True)
class Evidence:
    """What a run can show of how its weights came to be.

    Attributes:
        run_name: Name of the run.
        step: Optimizer steps behind the weights.
        tokens: Tokens trained on, padding included.
        config: The run's resolved configuration, as plain containers.
        results: Losses and rates by name, as measured last before the export.
        data: Manifest of the prepared data; None where it is not at hand.
        data_fingerprint: Hash over everything that shaped the data.
        versions: Of what trained the weights.
        imported_from: Where the first weights came from, if not from random numbers.
        commit: Revision of the code that exported them, where known.
    """

    run_name: str
    step: int
    tokens: int
    config: Mapping[str, Any]
    results: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    data_fingerprint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    imported_from: str | None = None
    commit: str | None = None


def model_card(
    evidence: Evidence, form: PublishedForm, comparison: Comparison, *, config: Any, dtype: str
) -> str:
    """Text of the `README.md` of an export.

    Args:
        evidence: Of the run.
        form: How `transformers` knows the architecture.
        comparison: What a fresh process found in the folder.
        config: Of the model.
        dtype: Number format of the weights.
    """
    positions = int(config.max_positions)
    reads = "texts of any length" if positions >= UNLIMITED else f"up to {positions:,} tokens"
    front = {
        "library_name": "transformers",
        "pipeline_tag": form.pipeline,
        "tags": [form.architecture, "long-sequence", "pretraining", "lsp"],
    }
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---\n",
        f"# {evidence.run_name}\n",
        f"A {form.title} language model "
        f"({evidence.config['objective']['name']}), {_origin(evidence)}. It reads "
        f"{reads}; the weights are {dtype}.\n",
        _usage(form, config, has_tokenizer=comparison.texts > 0, ends=_ends_texts(evidence)),
        "## Training\n\n" + _training(evidence),
        "## Data\n\n" + _data(evidence),
        "## Verification\n\n" + _verification(comparison, form),
        "## Configuration\n\n"
        "The run's resolved configuration; `lsp train` with these values repeats it.\n\n"
        f"```yaml\n{yaml.safe_dump(dict(evidence.config), sort_keys=False)}```\n",
        "## Versions\n\n" + _table(("", "trained with"), sorted(evidence.versions.items())),
    ]
    return "\n".join(parts)


def _origin(evidence: Evidence) -> str:
    if evidence.imported_from is not None and evidence.step == 0:
        return f"imported from `{evidence.imported_from}` and not trained further"
    begun = f", begun from `{evidence.imported_from}`" if evidence.imported_from else ""
    return f"trained with `lsp` for {evidence.step:,} steps ({evidence.tokens:,} tokens){begun}"


def _ends_texts(evidence: Evidence) -> bool:
    """Whether what an encoder read ended with eos, which the tokenizer leaves to its user."""
    packing = evidence.config.get("packing", {})
    return evidence.config["objective"]["name"] in DECODER and bool(packing.get("append_eos", True))


def _usage(form: PublishedForm, config: Any, *, has_tokenizer: bool, ends: bool) -> str:
    folder, code = '"path/to/this/folder"', ""
    if form.auto_map:
        *most, last = (f"`{file.name}`" for file in form.code)
        files = f"{', '.join(most)} and {last}"
        code = (
            f"\n`transformers` has no class for this model: {files} in this folder are it. They "
            "need nothing else; read them before `trust_remote_code=True` runs them.\n"
            f"{form.remark(config)}"
        )
    elif form.remark(config):
        code = f"\n{form.remark(config)}"
    opened = f"{folder}, trust_remote_code=True" if form.auto_map else folder
    options = "".join(f", {key}={value!r}" for key, value in form.opening.items())
    model = f"{form.auto_class}.from_pretrained({opened}{options})"
    if not has_tokenizer:
        return (
            "## Use\n\nThis model has no tokenizer.\n\n```python\n"
            f"from transformers import {form.auto_class}\n\nmodel = {model}\n```\n{code}"
        )
    lines = [
        f"from transformers import {form.auto_class}, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({opened})",
        f"model = {model}",
        'ids = tokenizer("def ", return_tensors="pt", add_special_tokens=False).input_ids',
    ]
    if ends:
        lines[0:0] = ["import torch"]
        lines.append("ids = torch.nn.functional.pad(ids, (0, 1), value=tokenizer.eos_token_id)")
    if form.generates:
        lines += ["print(tokenizer.decode(model.generate(ids, max_new_tokens=50)[0]))"]
    else:
        lines += ["print(model(ids).logits.argmax(-1))"]
    return "## Use\n\n```python\n" + "\n".join(lines) + f"\n```\n{code}"


def _training(evidence: Evidence) -> str:
    rows: list[tuple[str, object]] = [
        ("optimizer steps", f"{evidence.step:,}"),
        ("tokens", f"{evidence.tokens:,}"),
    ]
    rows += [(name, _number(value)) for name, value in evidence.results.items()]
    if evidence.commit:
        rows.append(("exported by", f"commit `{evidence.commit}`"))
    return _table(("", ""), rows)


def _data(evidence: Evidence) -> str:
    if evidence.data is None:
        known = f" (fingerprint `{evidence.data_fingerprint}`)" if evidence.data_fingerprint else ""
        return f"The prepared data was not at hand when this folder was written{known}.\n"
    data = evidence.data
    plain = [
        (key.replace("_", " "), _number(value))
        for key, value in data.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    parts = [_table(("", ""), plain)]
    for title, key in (("split", "splits"), ("source", "sources")):
        nested = data.get(key) or {}
        if nested:
            parts.append(_nested(title, nested))
    return "\n".join(parts)


def _nested(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = [key for key, value in next(iter(rows.values())).items() if _is_plain(value)]
    header = (title, *(column.replace("_", " ") for column in columns))
    body = [(name, *(_number(row.get(c, "")) for c in columns)) for name, row in rows.items()]
    return _table(header, body)


def _verification(comparison: Comparison, form: PublishedForm) -> str:
    text = (
        "Before this folder got its name, a fresh process opened it with plain `transformers` "
        f"{comparison.versions['transformers']} (torch {comparison.versions['torch']}) and "
        "compared it with the trained model.\n\n"
    )
    rows: list[tuple[object, ...]] = [
        (
            case.name,
            f"{case.length:,}",
            case.positions,
            case.dtype,
            f"{case.difference:.1e}",
            f"{case.largest:.3g}",
        )
        for case in comparison.cases
    ]
    header = ("logits", "length", "positions", "arithmetic", "largest difference", "largest logit")
    if rows:
        text += _table(header, rows)
        text += (
            f"\nA difference above {TOLERANCE} of the largest logit (or of 1) would have refused "
            "the export."
        )
    else:
        text += f"Logits were not compared: {form.incomparable}."
    text += f" All {comparison.weights} tensors are bit-equal to the trained ones"
    if comparison.texts:
        text += f"; {comparison.texts} texts were encoded and decoded alike"
    if comparison.generated:
        text += f"; `generate` continued a prompt by {comparison.generated} tokens"
    text += ".\n"
    if comparison.hash_seed is not None:
        text += (
            "\nLSH attention hashes with random rotations: both programs drew them from seed "
            f"{comparison.hash_seed} here. With `hash_seed` unset, `transformers` draws new ones "
            "for every call, so that logits vary a little from call to call.\n"
        )
    return text


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _number(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = json.dumps(value) if isinstance(value, Mapping) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
