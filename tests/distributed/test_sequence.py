"""Rows shared by several processes give what whole rows give: losses and every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lsp.core.errors import UserError
from lsp.models.reformer_config import ReformerConfig
from tests.distributed.shares import Case, Found, step, steps
from tests.distributed.spawn import run_distributed

BOTH_WAYS = (("is_decoder", False), ("local_num_chunks_after", 1), ("lsh_num_chunks_after", 1))

CASES = [
    Case("causal"),
    Case("one document", packed=False),
    Case("both ways", BOTH_WAYS),
    Case("recomputed", residual="recomputed"),
    Case("stored", residual="stored"),
    Case("one group", groups=1),
    Case("two chunks before", (("local_num_chunks_before", 2), ("lsh_num_chunks_before", 2))),
    # A share is not a whole number of chunks, or shorter than what a chunk sees: no halo then.
    Case("chunks longer than shares", (("local_attn_chunk_length", 32),)),
    Case("one chunk a row", (("local_attn_chunk_length", 64), ("lsh_attn_chunk_length", 64))),
    Case("local only", (("attn_layers", ["local", "local"]), ("num_attention_heads", 3))),
    Case("learned positions", (("axial_pos_embds", False),)),
    Case("factored buckets", (("num_buckets", [4, 2]), ("num_hashes", 3))),
    Case("evaluation", training=False),
]
LONGFORMERS = [
    Case("longformer"),
    Case("longformer, one document", packed=False),
    Case("longformer, causal", (("is_decoder", True),)),
    Case("longformer, stored", residual="stored"),
    Case("longformer, windows by layer", (("attention_window", [8, 128]),)),
    Case("longformer, windows longer than shares", (("attention_window", 200),)),
    Case("longformer, global tokens", (("global_tokens", 2),)),
    Case("longformer, gaps", (("attention_dilation", [1, [1, 2, 4, 4]]),)),
    Case("longformer, untied", (("tie_word_embeddings", False),)),
    Case("longformer, evaluation", training=False),
    Case("longformer, reversible", (("residual", "reversible"),)),
    Case(
        "longformer, reversible, global tokens",
        (("residual", "reversible"), ("global_tokens", 2), ("num_attention_heads", 8)),
    ),
]
CASES += [replace(case, architecture="longformer") for case in LONGFORMERS]
TRANSFORMERS_XL = [
    Case("transformer-xl"),
    Case("transformer-xl, one document", packed=False),
    Case("transformer-xl, stored", residual="stored"),
    Case("transformer-xl, across documents", (("memory_across_documents", True),)),
    Case("transformer-xl, memory shorter than shares", (("mem_len", 10),)),
    Case("transformer-xl, same length", (("same_length", True), ("mem_len", 24))),
    Case("transformer-xl, learned distances", (("attn_type", 1), ("tgt_len", 64))),
    Case("transformer-xl, sinusoids", (("attn_type", 2),)),
    Case("transformer-xl, learned places", (("attn_type", 3), ("tgt_len", 64), ("d_head", 8))),
    Case("transformer-xl, shared biases", (("untie_r", False),)),
    Case("transformer-xl, sampled", (("sample_softmax", 9), ("cutoffs", []), ("div_val", 1))),
    Case("transformer-xl, evaluation", training=False),
]
CASES += [replace(case, architecture="transformer_xl") for case in TRANSFORMERS_XL]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GROUPED = (("model_type", "qwen2"), ("init", {"num_key_value_heads": 2}))
WINDOW = {
    "num_key_value_heads": 4,
    "use_sliding_window": True,
    "sliding_window": 9,
    "max_window_layers": 1,
}
PUBLISHED = [
    Case("hub, grouped keys", GROUPED),
    Case("hub, grouped keys, one document", GROUPED, packed=False),
    Case("hub, windows", (("model_type", "qwen2"), ("init", WINDOW))),
    Case("hub, under a mask", (*GROUPED, ("attention", "sdpa"))),
    Case("hub, bert", (("model_type", "bert"), ("objective", "masked"), ("init", NO_DROPOUT))),
    Case("hub, bert, causal", (("model_type", "bert"), ("init", NO_DROPOUT))),
    Case("hub, roberta, evaluation", (("model_type", "roberta"),), training=False),
]
CASES += [replace(case, architecture="hub", residual="recomputed") for case in PUBLISHED]
NEZHAS = [
    Case("nezha"),
    Case("nezha, one document", packed=False),
    Case("nezha, causal", (("is_decoder", True),)),
    Case("nezha, stored", residual="stored"),
]
CASES += [replace(case, architecture="nezha") for case in NEZHAS]


@pytest.fixture(scope="module")
def alone() -> dict[str, Found]:
    return {case.name: step(case) for case in CASES}


@pytest.fixture(scope="module", params=[2, 4], ids="{} shares".format)
def shared(request, tmp_path_factory) -> list[dict[str, Found]]:
    """Of every process; four of them: two groups of two, or one of four."""
    folder = tmp_path_factory.mktemp("shares")
    results = run_distributed(steps, 4, folder, request.param, CASES)
    return [dict(zip((c.name for c in CASES), found, strict=True)) for found in results]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_whole_rows(alone, shared, case):
    expected = alone[case.name]
    for process in shared:
        found = process[case.name]
        assert found.count == expected.count
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)  # the loss is kept in fp32
        assert found.gradients.keys() == expected.gradients.keys()
        for name, value in expected.remembered.items():
            torch.testing.assert_close(found.remembered[name], value, rtol=1e-9, atol=1e-11)
        for name, gradient in expected.gradients.items():
            torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-9, atol=1e-11)


def test_dropout_differs_between_shares(tmp_path):
    """A share with the mask of another would drop the same places of every share."""
    dropped = Case("dropout", (("hidden_dropout_prob", 0.5),))
    first, second = run_distributed(steps, 2, tmp_path, 2, [dropped, dropped])
    for process in (first, second):
        assert process[0].loss == process[1].loss  # the seed decides, not the process
    assert first[0].loss != pytest.approx(step(Case("none")).loss, rel=1e-3)


@pytest.mark.parametrize(
    ("length", "degree", "values", "told"),
    [
        (64, 3, {}, "sequence_length=64 is not a multiple of it; use 1 or 2 or 4 with"),
        (192, 3, {}, "num_attention_heads=4, which lsh attention deals out, is not a multiple"),
        (64, 8, {"attn_layers": ["local"]}, "num_attention_heads=4, which local attention deals"),
    ],
    ids=["length", "lsh heads", "local heads"],
)
def test_refused_with_what_would_do(length, degree, values, told):
    defaults = {"num_attention_heads": 4, "local_attn_chunk_length": 16}
    config = ReformerConfig(**defaults | {"attn_layers": ["local", "lsh"]} | values)
    with pytest.raises(UserError, match=r"parallelism\.sequence=") as refusal:
        config.check_shares(length, degree)
    assert told in str(refusal.value)


def test_local_attention_alone_needs_no_heads_to_deal_out():
    values = {"attn_layers": ["local"], "num_attention_heads": 3, "local_attn_chunk_length": 16}
    ReformerConfig(**values).check_shares(64, 2)
