"""The heads that `transformers` publishes, by architecture and task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lsp.core.errors import unknown_choice
from lsp.models import registry
from lsp.models.heads.labels import Labels
from lsp.models.heads.longformer import LongformerReader
from lsp.models.heads.models import (
    CausalLanguageModelling,
    HeadedModel,
    LanguageModelling,
    MultipleChoice,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)
from lsp.models.heads.nezha import NezhaReader, PooledClassification
from lsp.models.heads.reader import Reader
from lsp.models.heads.reformer import ReformerReader
from lsp.models.heads.transformer_xl import (
    AdaptiveLanguageModelling,
    LastTokenClassification,
    TransformerXLReader,
)
from lsp.models.memory import MemoryConfig


@dataclass(frozen=True)
class PublishedHead:
    """One head of one architecture.

    Attributes:
        build: Makes the model from a reader and its labels.
        model_class: Its name in `transformers`, and `architectures` in `config.json`.
        auto_class: Opens a folder by its `config.json` alone.
    """

    build: type[HeadedModel]
    model_class: str
    auto_class: str


READERS: dict[str, type[Reader]] = {
    "reformer": ReformerReader,
    "longformer": LongformerReader,
    "transformer_xl": TransformerXLReader,
    "nezha": NezhaReader,
}

_SEQUENCES, _TOKENS = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
_QUESTIONS, _CHOICES = "AutoModelForQuestionAnswering", "AutoModelForMultipleChoice"
_CAUSAL, _MASKED = "AutoModelForCausalLM", "AutoModelForMaskedLM"

HEADS: dict[tuple[str, str], PublishedHead] = {
    (architecture, build.task): PublishedHead(build, model_class, auto_class)
    for architecture, build, model_class, auto_class in (
        ("reformer", CausalLanguageModelling, "ReformerModelWithLMHead", _CAUSAL),
        ("reformer", LanguageModelling, "ReformerForMaskedLM", _MASKED),
        ("reformer", SequenceClassification, "ReformerForSequenceClassification", _SEQUENCES),
        ("reformer", QuestionAnswering, "ReformerForQuestionAnswering", _QUESTIONS),
        ("longformer", LanguageModelling, "LongformerForMaskedLM", _MASKED),
        ("longformer", SequenceClassification, "LongformerForSequenceClassification", _SEQUENCES),
        ("longformer", QuestionAnswering, "LongformerForQuestionAnswering", _QUESTIONS),
        ("longformer", MultipleChoice, "LongformerForMultipleChoice", _CHOICES),
        ("longformer", TokenClassification, "LongformerForTokenClassification", _TOKENS),
        ("transformer_xl", AdaptiveLanguageModelling, "TransfoXLLMHeadModel", _CAUSAL),
        (
            "transformer_xl",
            LastTokenClassification,
            "TransfoXLForSequenceClassification",
            _SEQUENCES,
        ),
        ("nezha", LanguageModelling, "NezhaForMaskedLM", _MASKED),
        ("nezha", CausalLanguageModelling, "NezhaForCausalLM", _CAUSAL),
        ("nezha", PooledClassification, "NezhaForSequenceClassification", _SEQUENCES),
        ("nezha", QuestionAnswering, "NezhaForQuestionAnswering", _QUESTIONS),
        ("nezha", MultipleChoice, "NezhaForMultipleChoice", _CHOICES),
        ("nezha", TokenClassification, "NezhaForTokenClassification", _TOKENS),
    )
}


def head_of(architecture: str, task: str) -> PublishedHead:
    """A head of an architecture.

    Raises:
        UserError: There is none; the message has those that there are.
    """
    tasks = [name for kind, name in HEADS if kind == architecture]
    if not tasks:
        raise unknown_choice("architecture", architecture, {kind for kind, _ in HEADS})
    if (architecture, task) not in HEADS:
        raise unknown_choice(f"task of a {architecture}", task, tasks)
    return HEADS[architecture, task]


def build_head(
    config: Any,
    task: str,
    *,
    labels: Labels | None = None,
    memory: MemoryConfig | None = None,
) -> HeadedModel:
    """A model with fresh weights and a head.

    Args:
        config: Of an architecture.
        task: Name of the head.
        labels: What is told apart; None for two labels.
        memory: How memory is traded for time.

    Raises:
        UserError: The architecture has no such head, or the config does not fit it.
    """
    name = registry.name_of(config)
    head = head_of(name, task)
    backbone = registry.get(name).build(config, memory)
    return head.build(READERS[name](backbone), labels or Labels())
