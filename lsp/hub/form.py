"""How `transformers` knows an architecture: classes, `config.json`, weight names, and code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lsp.models.interface import LanguageModel

Weights = Mapping[str, torch.Tensor]

SHORT = 128
"""Positions of the short comparison, at most."""

BUNDLED = Path(__file__).with_name("bundled")
"""Folder of the model code that exports take along."""


@dataclass(frozen=True)
class PublishedForm:
    """One architecture under one objective, as `transformers` has it.

    Attributes:
        architecture: Our name of it.
        model_type: Its name in `config.json`.
        title: Its name in words.
        auto_class: Opens the folder by its `config.json` alone.
        model_class: What that has to give, and `architectures` in `config.json`.
        pipeline: Task of the model card.
        generates: Whether the class can continue a text.
        keeps_logits: Whether its forward pass can be limited to the scores of some positions.
        config_class: Our dataclass with the published field names.
        published_config: (our config, this form) to the content of `config.json`.
        ignored_keys: Keys of published files that say nothing about the model.
        to_published: (weights, our config) under our names to weights under the published ones.
        from_published: (published weights, our config) to weights under our names, all there and
            of the right shapes.
        some_logits: (model, (1, L) input ids, (K,) positions) to (1, K, V) scores.
        tied: Given a config of ours, names of weights that a file need not hold, as they are tied.
        remark: Given a config of ours, what else the model card says about opening the folder.
        opening: What the auto class has to be given to open the folder, beside its name.
        incomparable: Why plain `transformers` cannot compute what the model does where it is
            compared; empty where it can.
        stored: (published weights, our config) to what the files hold, where the published class
            renames or rearranges weights as it opens them.
        inputs: (our config, (1, L) input ids) to all that the class is called with.
        output: What it calls the scores of the positions.
        short_length: (our config, length of the training) to that of a short comparison.
        special_ids: Given a config of ours, what generation has to know: `eos_token_id`, …, and
            `decoder_start_token_id` where a decoder writes beside an encoder.
        auto_map: Where `transformers` has no such class: what opens the folder, by the name of the
            auto class, as `file.class` of the code that lies in it.
    """

    architecture: str
    model_type: str
    title: str
    auto_class: str
    model_class: str
    pipeline: str
    generates: bool
    keeps_logits: bool
    config_class: type
    published_config: Callable[[Any, PublishedForm], dict[str, Any]]
    ignored_keys: frozenset[str]
    to_published: Callable[[Weights, Any], dict[str, torch.Tensor]]
    from_published: Callable[[Weights, Any], dict[str, torch.Tensor]]
    some_logits: Callable[[LanguageModel, torch.Tensor, torch.Tensor], torch.Tensor]
    tied: Callable[[Any], Iterable[str]] = lambda _: ()
    remark: Callable[[Any], str] = lambda _: ""
    auto_map: Mapping[str, str] = field(default_factory=dict)
    opening: Mapping[str, Any] = field(default_factory=dict)
    incomparable: str = ""
    stored: Callable[[dict[str, torch.Tensor], Any], dict[str, torch.Tensor]] = lambda weights, _: (
        weights
    )
    inputs: Callable[[Any, torch.Tensor], dict[str, torch.Tensor]] = lambda _, ids_BL: {
        "input_ids": ids_BL
    }
    output: str = "logits"
    short_length: Callable[[Any, int], int] = lambda config, length: min(
        length, config.seen_whole, SHORT
    )
    special_ids: Callable[[Any], dict[str, int]] = lambda config: {
        name: number
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if (number := getattr(config, name)) is not None
    }

    @property
    def code(self) -> list[Path]:
        """Files of model code that the folder needs."""
        names = {target.partition(".")[0] for target in self.auto_map.values()}
        waiting = set(names)
        while waiting:
            text = (BUNDLED / f"{waiting.pop()}.py").read_text(encoding="utf-8")
            beside = set(re.findall(r"^from \.(\w+) import", text, flags=re.MULTILINE))
            waiting |= beside - names
            names |= beside
        return [BUNDLED / f"{name}.py" for name in sorted(names)]
