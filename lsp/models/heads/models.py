"""The heads, each over any architecture that can be read with.

Modules of a head have their published names. Dropout in a head draws from torch's global
generator, from which a model in training mode takes its seed too: `torch.manual_seed` before a
step repeats it.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import require
from lsp.models.heads.labels import Labels, class_loss, next_labels, span_loss, token_loss
from lsp.models.heads.outputs import HeadOutput, Reading
from lsp.models.heads.reader import Reader


class HeadedModel(nn.Module, ABC):
    """A native model and a head, to be trained and read together.

    Attributes:
        task: Name of the head.
        backbone: The model; how it trades memory for time (`MemoryConfig`) holds here too.
        reader: How it is read with, by the published names of arguments.
        labels: What is told apart; says nothing in heads over tokens of the vocabulary.
        fresh: Published names of weights that were drawn, not loaded, when the model was opened.
    """

    accepts_loss_kwargs = False
    """Tells the `Trainer` of `transformers` to do without arguments that no input is."""
    task: ClassVar[str]
    by_token: ClassVar[bool] = False
    """Whether each position has an answer of its own, so that rows may hold several documents."""
    keeps_lm_head: ClassVar[bool] = False
    """Whether it is the model's own head that answers."""

    def __init__(self, reader: Reader, labels: Labels) -> None:
        super().__init__()
        self.backbone, self.reader, self.labels = reader.backbone, reader, labels
        self.fresh: tuple[str, ...] = ()
        self.build()
        for module in self.own_modules():
            module.apply(reader.initialise)
        if not self.keeps_lm_head:
            reader.drop_head()

    @property
    def config(self) -> Any:
        """The architecture's."""
        return self.reader.config

    @abstractmethod
    def build(self) -> None:
        """Makes the head's modules."""

    def own_modules(self) -> list[nn.Module]:
        """Those of the head."""
        return [module for name, module in self.named_children() if name != "backbone"]

    def begin_micro_batch(self, seed: int, first_row: int = 0) -> None:
        """Sets the seed of the model's dropout and hashing in the next pass in training mode."""
        self.backbone.begin_micro_batch(seed, first_row)

    def read(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        **inputs: Any,
    ) -> Reading:
        """Reads rows: see `Reader.read`.

        Args:
            input_ids: (B, L) token ids.
            inputs_embeds: (B, L, D) vectors in place of those of the tokens, to which positions are
                added.
            inputs: Of the architecture.

        Raises:
            UserError: The input does not fit the architecture or the head.
        """
        require(
            (input_ids is None) != (inputs_embeds is None),
            "input_ids and inputs_embeds: give one of them",
        )
        require(
            self.by_token or inputs.get("segment_ids") is None,
            f"segment_ids is for heads that answer for each token: {self.task} answers for a row; "
            "give an attention_mask",
        )
        if input_ids is not None:
            return self.reader.read(self.task, input_ids, **inputs)
        assert inputs_embeds is not None
        with self.reader.embedded(inputs_embeds):
            return self.reader.read(self.task, self.reader.some_ids(inputs_embeds), **inputs)


class LanguageModelling(HeadedModel):
    """Scores of tokens: of those that are there, some of them masked."""

    task = "masked_lm"
    by_token = True
    keeps_lm_head = True
    shifts: ClassVar[bool] = False
    """Whether labels are those of the next tokens."""

    def build(self) -> None:
        require(
            self.config.is_decoder == self.shifts,
            f"is_decoder={str(self.config.is_decoder).lower()} does not fit {self.task}: use "
            f"is_decoder={str(self.shifts).lower()}",
        )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        output_logits: bool = True,
        **inputs: Any,
    ) -> HeadOutput:
        """Scores, and the mean loss of the labels.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding.
            labels: (B, L) the tokens themselves, -100 for those that do not count; a causal
                model shifts them by itself, and the first token of a document of `segment_ids`
                is not predicted.
            output_logits: Whether to give `logits`; without, the loss is computed tile by tile,
                and the scores of all positions never exist.
            inputs: See the architecture's `Reader.read`.
        """
        reading = self.read(input_ids, attention_mask=attention_mask, **inputs)
        if labels is not None and self.shifts:
            labels = F.pad(
                next_labels(labels, inputs.get("segment_ids")), (0, 1), value=IGNORE_INDEX
            )
        logits = loss = None
        if output_logits or labels is None:
            logits = self.reader.scores(reading.hidden)
            loss = None if labels is None else token_loss(logits, labels)
        else:
            loss_sum, count = self.reader.tiled_loss(reading.hidden, labels)
            loss = loss_sum / count
        return HeadOutput(loss=loss, logits=logits, **reading.shown)


class CausalLanguageModelling(LanguageModelling):
    """Scores of the next tokens."""

    task = "causal_lm"
    shifts = True


class ClassificationHead(nn.Module):
    """Two layers over the first hidden state of a row."""

    def __init__(self, reader: Reader, num_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(reader.width, reader.config.hidden_size)
        self.dropout = nn.Dropout(reader.head_dropout)
        self.out_proj = nn.Linear(reader.config.hidden_size, num_labels)

    def forward(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        hidden_BD = torch.tanh(self.dense(self.dropout(hidden_BD)))
        logits_BC: torch.Tensor = self.out_proj(self.dropout(hidden_BD))
        return logits_BC


class SequenceClassification(HeadedModel):
    """Labels of a row, from its first token."""

    task = "sequence_classification"

    def build(self) -> None:
        if self.config.is_decoder:
            warnings.warn(
                f"{self.task} reads the first token, which in a causal model sees nothing else: "
                "use is_decoder=False",
                stacklevel=2,
            )
        self.classifier: nn.Module = ClassificationHead(self.reader, self.labels.num_labels)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **inputs: Any,
    ) -> HeadOutput:
        """Scores of the labels, (B, labels), and the mean loss.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding.
            labels: As `Labels.loss` takes them.
            inputs: See the architecture's `Reader.read`.
        """
        reading = self.read(input_ids, attention_mask=attention_mask, **inputs)
        logits_BC = self.classifier(reading.hidden[:, 0])
        loss = None if labels is None else self.labels.loss(logits_BC, labels)
        return HeadOutput(loss=loss, logits=logits_BC, **reading.shown)


class QuestionAnswering(HeadedModel):
    """Where in a row an answer begins and ends."""

    task = "question_answering"

    def build(self) -> None:
        require(
            self.labels.num_labels == 2,
            f"num_labels={self.labels.num_labels}: {self.task} has 2, the beginning and the end; "
            "leave it out",
        )
        self.qa_outputs = nn.Linear(self.reader.width, 2)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **inputs: Any,
    ) -> HeadOutput:
        """Scores of both ends, (B, L) each, and their mean loss where both are known.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding.
            start_positions: (B,) first token of the answer; L or more where it is not in the row.
            end_positions: (B,) its last token.
            inputs: See the architecture's `Reader.read`.
        """
        reading = self.read(input_ids, attention_mask=attention_mask, **inputs)
        start_BL, end_BL = self.qa_outputs(reading.hidden).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_BL, end_BL, start_positions, end_positions)
        return HeadOutput(loss=loss, start_logits=start_BL, end_logits=end_BL, **reading.shown)


class Pooler(nn.Module):
    """A layer over the first hidden state of a row."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.dense = nn.Linear(reader.width, reader.config.hidden_size)

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(hidden_BLD[:, 0]))


class MultipleChoice(HeadedModel):
    """Which of several continuations fits."""

    task = "multiple_choice"

    def build(self) -> None:
        self.pooler = Pooler(self.reader)
        self.dropout = nn.Dropout(self.reader.head_dropout)
        self.classifier = nn.Linear(self.reader.config.hidden_size, 1)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **inputs: Any,
    ) -> HeadOutput:
        """Scores of the choices, (B, choices), and the mean loss; the rest has B * choices rows.

        Args:
            input_ids: (B, choices, L) token ids.
            attention_mask: (B, choices, L) 0 for padding.
            labels: (B,) which choice is right, -100 for none.
            inputs: See the architecture's `Reader.read`, with a dimension for the choices.
        """
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        tensors = {name: x for name, x in inputs.items() if isinstance(x, torch.Tensor)}
        flat = {name: x.flatten(0, 1) for name, x in tensors.items()}
        reading = self.read(**(inputs | flat))
        pooled_XD = self.dropout(self.pooler(reading.hidden))
        choices = next(iter(tensors.values())).shape[1]
        logits_BC = self.classifier(pooled_XD).view(-1, choices)
        loss = None if labels is None else class_loss(logits_BC, labels)
        return HeadOutput(loss=loss, logits=logits_BC, **reading.shown)


class TokenClassification(HeadedModel):
    """Labels of each token."""

    task = "token_classification"
    by_token = True

    def build(self) -> None:
        self.dropout = nn.Dropout(self.reader.head_dropout)
        self.classifier = nn.Linear(self.reader.width, self.labels.num_labels)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **inputs: Any,
    ) -> HeadOutput:
        """Scores of the labels of each token, (B, L, labels), and their mean loss.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L) 0 for padding.
            labels: (B, L) classes, -100 for tokens that do not count.
            inputs: See the architecture's `Reader.read`.
        """
        reading = self.read(input_ids, attention_mask=attention_mask, **inputs)
        logits_BLC = self.classifier(self.dropout(reading.hidden))
        loss = None if labels is None else class_loss(logits_BLC, labels)
        return HeadOutput(loss=loss, logits=logits_BLC, **reading.shown)
