"""What is known of each architecture of `transformers`, by its published `model_type`.

Plain facts, without an import of `transformers`; what can be read off a config or a model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lsp.core.errors import UserError, unknown_choice


@dataclass(frozen=True)
class HubRow:
    """One architecture.

    Attributes:
        heads: The published class for each objective it can be trained with, that of its paper
            first.
        kind: `decoder`, `encoder` or `encoder_decoder`.
        causal: What makes it predict the next token without seeing it: `always`, the name of a
            key that does (`is_decoder`, `causal`, `attn_type`), or empty where nothing does.
        segments: How documents in a row are kept apart: `mask4d`, a mask over pairs of positions;
            `interface`, the same through transformers' attention interface; empty, not at all.
        shares: Whether processes can share the positions of a row.
        positions: Key of its number of positions; empty where any length will do.
        table: Whether that key is the length of a table beyond which it fails, or, as with rotary
            positions, only says what the model was made for.
        first_position: `pad` where the first token has the position after that of padding, which
            takes as many rows of the table.
        config: transformers' `model_type`, where that is another name.
        body: Path of the module whose hidden states the head reads, beside the usual.
        cost: Of attention in the length L of a row.
        layers: Paths of its layers, where transformers cannot recompute them by itself.
        settings: Keys that have to have these values here.
        ignored: Keys that are read from files and change nothing.
        note: What else is to be known.
    """

    heads: Mapping[str, str]
    kind: str
    causal: str = ""
    segments: str = ""
    shares: bool = False
    positions: str = "max_position_embeddings"
    table: bool = True
    first_position: str = ""
    config: str = ""
    body: str = ""
    cost: str = "L²"
    layers: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    note: str = ""

    @property
    def objectives(self) -> tuple[str, ...]:
        """What it can be trained with, the objective of its paper first."""
        return tuple(self.heads)


NATIVE = {
    "reformer": "reformer",
    "transfo-xl": "transformer_xl",
    "mega": "mega",
    "nezha": "nezha",
}
"""What is written here instead: the value of `architecture=` by the published name."""


def _decoder(name: str, **facts: object) -> HubRow:
    heads = {"causal": name, "fill_in_the_middle": name}
    return HubRow(heads, "decoder", **({"causal": "always"} | facts))  # type: ignore[arg-type]


ROWS: dict[str, HubRow] = {
    "bert": HubRow(
        {
            "next_sentence": "BertForPreTraining",
            "masked": "BertForMaskedLM",
            "causal": "BertLMHeadModel",
            "fill_in_the_middle": "BertLMHeadModel",
        },
        "encoder",
        causal="is_decoder",
    ),
    "gpt2": _decoder("GPT2LMHeadModel", positions="n_positions"),
    "llama": _decoder("LlamaForCausalLM", table=False),
    "roberta": HubRow(
        {
            "masked": "RobertaForMaskedLM",
            "causal": "RobertaForCausalLM",
            "fill_in_the_middle": "RobertaForCausalLM",
        },
        "encoder",
        causal="is_decoder",
        first_position="pad",
    ),
}


def row_of(model_type: str) -> HubRow:
    """The row of a published name.

    Raises:
        UserError: There is none; the message has the nearest name and all of them.
    """
    if model_type in NATIVE:
        raise UserError(
            f"model_type={model_type} is written here: use architecture={NATIVE[model_type]}"
        )
    if model_type not in ROWS:
        raise unknown_choice("model_type", model_type, ROWS)
    return ROWS[model_type]
