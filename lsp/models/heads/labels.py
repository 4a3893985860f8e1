"""Labels and losses, by the published rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import UserError, require, unknown_choice

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass
class Labels:
    """What a classifier tells apart, under the published names.

    Attributes:
        num_labels: How many there are; 1 for a number to be estimated.
        problem_type: `regression` (mean squared error), `single_label_classification`
            (cross-entropy, -100 is ignored) or `multi_label_classification` (binary cross-entropy
            of each); None lets the first labels decide: a number if there is one label, the
            second if they are integers, else the third.
        id2label: Their names; empty for LABEL_0 and so on.
    """

    num_labels: int = 2
    problem_type: str | None = None
    id2label: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            isinstance(self.num_labels, Integral) and self.num_labels >= 1,
            f"num_labels={self.num_labels!r} has to be a whole number, 1 or more",
        )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise unknown_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if not self.id2label:
            self.id2label = {number: f"LABEL_{number}" for number in range(self.num_labels)}
        require(
            sorted(self.id2label) == list(range(self.num_labels)),
            f"id2label={self.id2label} has to name the labels 0 to {self.num_labels - 1} "
            f"(num_labels={self.num_labels})",
        )

    @classmethod
    def of(
        cls,
        published: Mapping[str, Any],
        *,
        num_labels: int | None = None,
        problem_type: str | None = None,
        id2label: Mapping[int, str] | None = None,
    ) -> Labels:
        """Those of a published `config.json`, but for what is given here.

        Raises:
            UserError: They do not fit together.
        """
        if id2label is None and num_labels is None:
            id2label = published.get("id2label") or None
            num_labels = published.get("num_labels") if id2label is None else None
        if num_labels is None:
            num_labels = cls.num_labels if id2label is None else len(id2label)
        try:
            names = {int(number): str(name) for number, name in (id2label or {}).items()}
        except (TypeError, ValueError, AttributeError):
            raise UserError(f"id2label={id2label} has to map numbers to names") from None
        return cls(num_labels, problem_type or published.get("problem_type"), names)

    def to_dict(self) -> dict[str, Any]:
        """The keys of a published `config.json`."""
        values: dict[str, Any] = {
            "id2label": {str(number): name for number, name in self.id2label.items()},
            "label2id": {name: number for number, name in self.id2label.items()},
        }
        return values if self.problem_type is None else values | {"problem_type": self.problem_type}

    def loss(self, logits_BC: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss of rows; the first labels settle a `problem_type` that was left open.

        Args:
            logits_BC: (B, labels) scores.
            labels: (B,) classes, -100 for none; (B,) or (B, labels) numbers; or (B, labels) of 0
                and 1, as floats where `problem_type` was left open.
        """
        if self.problem_type is None:
            whole = labels.dtype in (torch.long, torch.int)
            one, single, several = PROBLEM_TYPES
            self.problem_type = one if self.num_labels == 1 else single if whole else several
        if self.problem_type == "regression":
            if self.num_labels == 1:
                return F.mse_loss(logits_BC.squeeze(), labels.squeeze())
            return F.mse_loss(logits_BC, labels)
        if self.problem_type == "single_label_classification":
            return class_loss(logits_BC, labels)
        return F.binary_cross_entropy_with_logits(logits_BC, labels.to(logits_BC.dtype))


def next_labels(
    labels_BL: torch.Tensor, segment_ids_BL: torch.Tensor | None = None
) -> torch.Tensor:
    """What each token but the last has to predict, (B, L - 1): nothing of another document."""
    next_BK = labels_BL[:, 1:]
    if segment_ids_BL is None:
        return next_BK
    return next_BK.masked_fill(segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1], IGNORE_INDEX)


def class_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over labels that are not -100: (..., C) scores, (...) classes."""
    logits_XC = logits.reshape(-1, logits.shape[-1])
    return F.cross_entropy(logits_XC, labels.reshape(-1).long(), ignore_index=IGNORE_INDEX)


def token_loss(logits_BLV: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    """`class_loss` of tokens, in fp32 at least."""
    wide = torch.promote_types(logits_BLV.dtype, torch.float32)
    return class_loss(logits_BLV.to(wide), labels_BL)


def span_loss(
    start_BL: torch.Tensor, end_BL: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Mean of the cross-entropies of where a span begins and ends.

    Args:
        start_BL: (B, L) scores of the positions for the beginning.
        end_BL: (B, L) scores of the positions for the end.
        starts: (B,) or (B, 1) positions; one beyond the row, as that of an answer that was cut
            off, counts for nothing, and one before it for 0.
        ends: As `starts`.
    """
    length = start_BL.shape[1]

    def one(scores_BL: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if positions.dim() > 1:
            positions = positions.squeeze(-1)
        return F.cross_entropy(scores_BL, positions.clamp(0, length), ignore_index=length)

    return (one(start_BL, starts) + one(end_BL, ends)) / 2
