"""What the user may say about the reports of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from lsp.core.errors import require

MOST_DISTRACTORS = 1000


@dataclass
class ReportsConfig:
    """The reports beside the loss by position, which costs nothing. All are of causal models.

    Attributes:
        context: Whether to report the loss by context length: the same tokens, predicted from
            windows of c tokens, each of which is read as if the text began there; a token sees from
            c/2 to c - 1 tokens before it. Costs one reading of the text for each c.
        context_shortest: The smallest c.
        context_longest: The largest c, of which the others are halves; 0 is `sequence_length`, or,
            for a model with a memory, the double of it that its memory reaches. Where no document
            is so long, the largest half of it that one is.
        passkey: Whether to ask for pass keys that stand in a text of filler.
        passkey_lengths: Tokens of those texts; empty for `sequence_length` and its halves, as far
            as the question has room.
        passkey_depths: How many places in the filler, from its beginning to its end.
        passkey_samples: Texts for each length and place.
        passkey_distractors: Keys that the right one has to be likelier than; chance is 1 in so many
            and one.
        sliding: Whether to report sliding evaluation: every token with much before it, which needs
            documents that are longer than a row (`packing=concatenate`, or `best_fit`).
        sliding_strides: How many tokens each window adds to the one before it, for models without
            memory; empty for a half, a quarter and an eighth of `sequence_length`.
        sliding_memories: Lengths of the memory, for models that have one; empty for a half of the
            trained one, itself, and two and four times it.
        sliding_segment: Tokens read at a time by a model with a memory; 0 is `sequence_length`.
        same_length: In sliding evaluation, in place of the model's own (Transformer-XL).
        clamp_len: In sliding evaluation, in place of the model's own (Transformer-XL).
        report_rows: Rows that `context` and `sliding` read; 0 for all.
        seed: Of the pass keys.
        plots: Whether each report is drawn, into a PNG beside the result.
    """

    context: bool = True
    context_shortest: int = 64
    context_longest: int = 0
    passkey: bool = False
    passkey_lengths: list[int] = field(default_factory=list)
    passkey_depths: int = 5
    passkey_samples: int = 8
    passkey_distractors: int = 4
    sliding: bool = False
    sliding_strides: list[int] = field(default_factory=list)
    sliding_memories: list[int] = field(default_factory=list)
    sliding_segment: int = 0
    same_length: bool | None = None
    clamp_len: int | None = None
    report_rows: int = 64
    seed: int = 0
    plots: bool = True

    def __post_init__(self) -> None:
        require(
            self.context_shortest >= 2,
            f"context_shortest={self.context_shortest} must be 2 or more, e.g. 64",
        )
        longest = self.context_longest
        require(
            longest == 0 or (longest >= self.context_shortest and longest % 2 == 0),
            f"context_longest={longest} must be 0 (sequence_length), or an even number from "
            f"context_shortest={self.context_shortest} on, e.g. 4096",
        )
        for key in ("passkey_depths", "passkey_samples", "passkey_distractors"):
            value = getattr(self, key)
            require(value >= 1, f"{key}={value} must be 1 or more")
        require(
            self.passkey_distractors <= MOST_DISTRACTORS,
            f"passkey_distractors={self.passkey_distractors} must be at most {MOST_DISTRACTORS}: "
            "each is a pass over every text, and there are only so many numbers",
        )
        for key in ("passkey_lengths", "sliding_strides", "sliding_memories"):
            values = getattr(self, key)
            require(
                all(value >= 1 for value in values),
                f"{key}={values} must be numbers from 1 on, e.g. [256,1024]",
            )
        for key in ("report_rows", "sliding_segment", "seed"):
            value = getattr(self, key)
            require(value >= 0, f"{key}={value} must be 0 or more")
