"""What the user may say about the objective."""

from __future__ import annotations

from dataclasses import dataclass

from lsp.core.errors import require, unknown_choice

OBJECTIVES = ("causal", "masked")


@dataclass
class ObjectiveConfig:
    """What the model is trained to predict.

    Attributes:
        name: `causal` (the next token) or `masked` (BERT, 1810.04805, section 3.1).
        mask_probability: Share of tokens that are predicted (`masked`).
        replace_probability: Share of those that become the mask token.
        random_probability: Share of those that become a random token; the rest stay.
    """

    name: str = "causal"
    mask_probability: float = 0.15
    replace_probability: float = 0.8
    random_probability: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise unknown_choice("objective.name", self.name, OBJECTIVES)
        require(
            0 < self.mask_probability < 1,
            f"objective.mask_probability={self.mask_probability} must be between 0 and 1, "
            "e.g. 0.15",
        )
        for key in ("replace_probability", "random_probability"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"objective.{key}={value} must be between 0 and 1")
        require(
            self.replace_probability + self.random_probability <= 1,
            f"objective.replace_probability={self.replace_probability} and "
            f"objective.random_probability={self.random_probability} must add up to 1 or less",
        )
