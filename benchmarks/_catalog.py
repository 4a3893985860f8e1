"""Every architecture with each of its objectives, in sizes that train in a moment."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsp.core.objectives import DECODER
from lsp.models import registry
from lsp.models.hub.config import HubConfig
from lsp.models.hub.keys import known_keys
from lsp.models.hub.table import ROWS
from lsp.verify.variants import SIZES
from tests.models.hub.tiny import tiny

PUBLISHED = " (as published)"
"""Tells what `transformers` has from what is written here under the same name."""
TEXT = "the reader keeps two streams and gives back what it was given, layer by layer"
NAMES = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Leslie", "Tony")


@dataclass(frozen=True)
class Pair:
    """An architecture and an objective.

    Attributes:
        name: Of the architecture.
        objective: What it is trained to predict.
        number: Of the objective, that of the paper is 0.
        start: Special token that a decoder's text begins with; empty for the objective's own.
        packing: How documents share rows.
    """

    name: str
    objective: str
    number: int
    start: str = ""
    packing: str = "best_fit"

    @property
    def architecture(self) -> Any:
        """Its config, in a size that trains in a moment, without dropout.

        What is dropped depends on which rows a process has together, so that losses of two could
        not be compared with those of one.
        """
        if self.name in SIZES:
            config = registry.get(self.name).config_class(**SIZES[self.name])
            for key in filter(drops, vars(config)):
                if not isinstance(getattr(config, key), bool):
                    setattr(config, key, 0.0)
            return config
        kind = self.name.removesuffix(PUBLISHED)
        dropped = dict.fromkeys(filter(drops, sorted(known_keys(kind))), 0.0)
        ignored = {"classifier_dropout", "classif_dropout"}
        return HubConfig(kind, {k: v for k, v in dropped.items() if k not in ignored} | tiny(kind))


def drops(key: str) -> bool:
    """Whether a key of a config says how much is random in training."""
    return any(word in key for word in ("dropout", "pdrop", "dropatt", "layerdrop", "jitter"))


def pairs() -> list[Pair]:
    """All of them: what is written here, then what `transformers` has, by name."""
    found = []
    for name, values in SIZES.items():
        row = registry.get(name)
        packing = "concatenate" if row.remembers else "best_fit"
        names = row.objectives(row.config_class(**values))
        found += [Pair(name, o, number, packing=packing) for number, o in enumerate(names)]
    for kind, published in sorted(ROWS.items()):
        name = f"{kind}{PUBLISHED}" if kind in SIZES else kind
        packing = "best_fit" if published.segments else "one_per_row"
        for number, objective in enumerate(published.objectives):
            start = published.start if objective in DECODER else ""
            found.append(Pair(name, objective, number, start, packing))
    return found


def write_corpus(folder: Path, files: int = 80) -> None:
    """Documents of sentences, in which names occur again; and pairs of sentences."""
    folder.mkdir(parents=True)
    generator = random.Random(0)
    lines = []
    for number in range(files):
        name = " ".join(generator.sample(NAMES, 2))
        sentences = []
        for _ in range(generator.randint(4, 16)):
            words = generator.choices(TEXT.split(), k=generator.randint(4, 12))
            words.insert(generator.randint(0, 3), name)
            sentences.append(" ".join(words).rstrip(",") + ".")
        (folder / f"{number:02d}.txt").write_text(" ".join(sentences))
        lines.append(json.dumps({"text": sentences[0], "other": sentences[1]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines * 8))
