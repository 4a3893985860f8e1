"""What a model card tells its reader to run."""

import pytest

from lsp.hub.card import model_card
from lsp.hub.comparison import Comparison
from lsp.hub.hub_forms import form_of
from lsp.models.hub.config import HubConfig, resolve
from tests.hub.tiny import tiny_evidence
from tests.models.hub.tiny import SPECIAL_IDS, tiny

EOS = "value=tokenizer.eos_token_id"


@pytest.mark.parametrize(
    ("model_type", "objective", "append_eos", "ends"),
    [
        ("t5", "span_corruption", True, True),
        ("t5", "translation", True, True),
        ("t5", "span_corruption", False, False),
        ("llama", "causal", True, False),
    ],
)
def test_an_encoder_reads_texts_that_end_as_in_training(model_type, objective, append_eos, ends):
    config = resolve(
        HubConfig(model_type, tiny(model_type)),
        vocab_size=60,
        sequence_length=32,
        objective=objective,
        special_ids=SPECIAL_IDS,
    )
    evidence = tiny_evidence(
        config={"objective": {"name": objective}, "packing": {"append_eos": append_eos}}
    )
    found = Comparison((), 1, 1, 4, None, {"torch": "1", "transformers": "5"}, 1.0)
    card = model_card(evidence, form_of(config), found, config=config, dtype="fp32")
    assert (EOS in card) is ends
    assert ("import torch\n" in card) is ends
