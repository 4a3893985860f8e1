"""Documents of a packed row give what each gives alone: values and the gradient of every weight."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from lsp.core.errors import UserError
from lsp.core.objectives import DECODER, NEXT_TOKEN
from lsp.models.hub.adapter import HubModel
from lsp.models.hub.build import build
from lsp.models.hub.config import HubConfig, resolve
from lsp.models.hub.losses import decoding
from lsp.models.hub.masks import APART
from lsp.models.hub.table import ROWS
from tests.models.hub.tiny import SPECIAL_IDS, VOCABULARY, tiny

LENGTH = 32
BOUNDS = ((0, 11), (11, 14), (14, 27)), ((0, 18), (18, 32))
"""Where documents begin and end; what is behind them is padding."""
FLOAT = ("led", "longformer", "mixtral", "xglm")
"""Published code that computes in four bytes whatever its weights are in."""
PARTLY = (
    *("bloom", "codegen", "cohere", "flaubert", "gemma", "gptj", "mamba", "mpt", "nllb-moe"),
    *("roformer", "switch_transformers", "xlm"),
)
"""The same, of parts of them."""
WHOLE_ROWS = ("big_bird", "bigbird_pegasus", "mra", "nystromformer", *APART)
"""Which have rules for lengths: there alone means with padding."""
VARIANTS: dict[str, dict[str, Any]] = {
    "deberta-v2": {"position_biased_input": False},
    "falcon": {"alibi": True},
    "longt5": {"encoder_attention_type": "transient-global"},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "starcoder2": {"sliding_window": 5},
    "switch_transformers": {"expert_capacity": 3},
    "yoso": {"conv_window": 3},
}
"""Settings of some that mix tokens in other ways than by default."""


def _objectives(name: str) -> list[str]:
    """Of each kind of pass one: both ways, forward, of an encoder and a decoder."""
    kinds = ("masked", "causal", DECODER[0])
    return [o for o in kinds if o in ROWS[name].heads] or list(ROWS[name].heads)[:1]


CASES = [
    (name, objective, values)
    for name, row in ROWS.items()
    if row.segments
    for values in ([{}, VARIANTS[name]] if name in VARIANTS else [{}])
    for objective in _objectives(name)
]


def _id(case: tuple[str, str, dict[str, Any]]) -> str:
    name, objective, values = case
    return "-".join([name, objective, *values])


@cache
def numbers() -> torch.Tensor:
    segments_BL = torch.zeros(len(BOUNDS), LENGTH, dtype=torch.long)
    for row, documents in enumerate(BOUNDS):
        for number, (start, stop) in enumerate(documents, 1):
            segments_BL[row, start:stop] = number
    return segments_BL


def make(name: str, objective: str, values: dict[str, Any], attention: str = "auto") -> HubModel:
    config = resolve(
        HubConfig(model_type=name, model_init_config=tiny(name) | values, attention=attention),
        vocab_size=VOCABULARY,
        sequence_length=LENGTH,
        objective=objective,
        special_ids=SPECIAL_IDS,
    )
    torch.manual_seed(0)
    return build(config).to(torch.float32 if name in FLOAT else torch.float64).eval()


def hidden(model: HubModel, ids_BL: torch.Tensor, segments_BL: torch.Tensor) -> torch.Tensor:
    """What the head reads; with a decoder: of the same text, with other tokens."""
    if model.config.objective not in DECODER:
        return model.hidden_states(ids_BL, segments_BL)
    ids_BT = VOCABULARY + 6 - ids_BL.clamp(min=7)
    batch = {"input_ids": ids_BL, "segment_ids": segments_BL}
    decoder = {"decoder_input_ids": ids_BT, "decoder_segment_ids": segments_BL}
    return decoding.hidden_states(model, batch | decoder)


def gradients(model: HubModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_equals_documents_one_by_one(case: tuple[str, str, dict[str, Any]]) -> None:
    name = case[0]
    model = make(*case)
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(7, VOCABULARY, (len(BOUNDS), LENGTH), generator=generator)
    packed_BLD = hidden(model, ids_BL, numbers())
    weights_BLD = torch.randn(packed_BLD.shape, generator=generator).to(packed_BLD.dtype)
    real_BL1 = (numbers() != 0)[..., None]
    expected, total = torch.zeros_like(packed_BLD), packed_BLD.new_zeros(())
    for row, documents in enumerate(BOUNDS):
        for start, stop in documents:
            count = stop - start
            length = LENGTH if name in WHOLE_ROWS else count
            alone_1L = torch.zeros(1, length, dtype=torch.long)
            alone_1L[0, :count] = ids_BL[row, start:stop]
            number_1L = (torch.arange(length) < count).long()[None]
            out_KD = hidden(model, alone_1L, number_1L)[0, :count]
            expected[row, start:stop] = out_KD.detach()
            total = total + (out_KD * weights_BLD[row, start:stop]).sum()
    rough = name in FLOAT + PARTLY
    close = {"rtol": 1e-4, "atol": 1e-5} if rough else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(packed_BLD.detach() * real_BL1, expected, **close)
    found = gradients(model, (packed_BLD * weights_BLD * real_BL1).sum())
    alone = gradients(model, total)
    assert found.keys() == alone.keys()
    largest = max(float(gradient.abs().max()) for gradient in alone.values())
    for weight, gradient in alone.items():
        # Biases of keys have none but rounding.
        difference = float((found[weight] - gradient).abs().max())
        assert difference < (1e-5 if rough else 1e-9) * largest, weight


@pytest.mark.parametrize("name", ["led", "pegasus_x"])
def test_rows_of_padding_change_nothing(name: str) -> None:
    """As many documents as rows, one of them a whole row: the shape is that of the packed rows."""
    model = make(name, DECODER[0], {})
    ids_BL = torch.arange(5 * LENGTH).view(5, LENGTH) % (VOCABULARY - 8) + 7
    segments_BL = torch.ones_like(ids_BL)
    segments_BL[:2, 10:], segments_BL[3:] = 2, 0
    with torch.no_grad():
        all_BLD = hidden(model, ids_BL, segments_BL)
        without_BLD = hidden(model, ids_BL[:3], segments_BL[:3])
    torch.testing.assert_close(all_BLD[:3], without_BLD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if c[1] in NEXT_TOKEN], ids=_id)
def test_sees_nothing_later(case: tuple[str, str, dict[str, Any]]) -> None:
    """And something earlier: a changed token changes what follows it in its document alone."""
    model = make(*case)
    ids_BL = torch.arange(2 * LENGTH).view(2, LENGTH) % (VOCABULARY - 8) + 7
    others_BL = ids_BL.clone()
    others_BL[0, 5] += 1
    with torch.no_grad():
        before, after = (model.logits(ids, numbers()) for ids in (ids_BL, others_BL))
    changed_BL = (before != after).any(-1) & (numbers() != 0)
    assert changed_BL[0, 5:11].all()
    assert not changed_BL[0, :5].any()
    assert not changed_BL[0, 11:].any()
    assert not changed_BL[1].any()


@pytest.mark.parametrize("name", ["bart", "bert", "gpt2", "t5"])
def test_attention_is_the_same_however_it_is_computed(name: str) -> None:
    found = []
    for attention in ("lsp", "sdpa", "eager"):
        model = make(name, _objectives(name)[0], {}, attention)
        ids_BL = torch.arange(2 * LENGTH).view(2, LENGTH) % (VOCABULARY - 8) + 7
        hidden_BLD = hidden(model, ids_BL, numbers())[numbers() != 0]
        gradient = gradients(model, hidden_BLD.cos().sum())
        found.append({"hidden": hidden_BLD.detach(), **gradient})
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["big_bird", "bigbird_pegasus"])
def test_short_rows_do_not_change_the_kind_of_attention(name: str) -> None:
    objective = _objectives(name)[0]
    model = make(name, objective, {})
    ids_BL = torch.full((1, LENGTH), 9)
    before = hidden(model, ids_BL, torch.ones_like(ids_BL))
    with pytest.raises(UserError, match="rows of fewer than 15 tokens"):
        hidden(model, ids_BL[:, :8], torch.ones(1, 8, dtype=torch.long))
    assert torch.equal(hidden(model, ids_BL, torch.ones_like(ids_BL)), before)
