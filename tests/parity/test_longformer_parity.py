"""Our Longformer beside the published one: same weights, same logits, losses and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from lsp.models.longformer import Longformer
from lsp.models.longformer_config import LongformerConfig
from lsp.models.longformer_weights import from_published, to_published
from lsp.models.memory import MemoryConfig

torch.set_num_threads(1)

LENGTH, VOCABULARY = 48, 30
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 66,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
    "layer_norm_eps": 1e-5,
}
WINDOWS: dict[str, Any] = {"one": 8, "by layer": [4, 8, 16], "longer than the row": 96}
MEMORIES = {
    "stored": MemoryConfig("stored"),
    "recomputed": MemoryConfig("recomputed"),
    "tiled": MemoryConfig("recomputed", head_tiles=5, feed_forward_tiles=3, tile_megabytes=0.002),
}


def published(window: Any, **values: Any) -> transformers.LongformerForMaskedLM:
    torch.manual_seed(0)
    windows = [window] * 3 if isinstance(window, int) else window
    config = transformers.LongformerConfig(**SHAPE | {"attention_window": windows} | values)
    model = transformers.LongformerForMaskedLM(config).train()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms are not at their first values for long
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


def ours_of(
    model: transformers.LongformerForMaskedLM, memory: MemoryConfig, global_tokens: int
) -> Longformer:
    config = LongformerConfig.from_dict(model.config.to_dict())
    config.global_tokens = global_tokens
    ours = Longformer(config, memory)
    ours.load_state_dict(from_published(model.state_dict(), config))
    return ours.train()


def rows(padded: bool, with_global: bool) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    ids = torch.randint(2, VOCABULARY, (2, LENGTH))
    mask, seen = torch.ones_like(ids), torch.zeros_like(ids)
    labels = torch.where(torch.rand(ids.shape) < 0.3, ids, -100)
    if with_global:
        seen[0, [0, 7, 30]] = 1
        seen[1, 3] = 1
    if padded:
        mask[1, 40:] = 0
        ids[1, 40:], labels[1, 40:] = 1, -100
    return ids, labels, mask, seen


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("with_global", [False, True], ids=["windows", "and global tokens"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("window", WINDOWS)
def test_values_and_gradients(window: str, padded: bool, with_global: bool, memory: str):
    theirs = published(WINDOWS[window])
    ours = ours_of(theirs, MEMORIES[memory], int(with_global))
    ids, labels, mask, seen = rows(padded, with_global)
    seen_or_none = seen if with_global else None

    out = theirs(ids, attention_mask=mask, global_attention_mask=seen_or_none, labels=labels)
    out.loss.backward()
    loss_sum, count = ours(ids, labels, mask, None, seen_or_none)
    (loss_sum / count).backward()

    assert count == (labels != -100).sum()
    torch.testing.assert_close(loss_sum / count, out.loss, rtol=1e-5, atol=0)
    logits = ours.logits(ids, mask, None, seen_or_none)
    real = mask.bool()
    torch.testing.assert_close(logits[real], out.logits[real], rtol=1e-4, atol=1e-5)

    expected = {name: p.grad for name, p in theirs.named_parameters()}
    expected["lm_head.decoder.bias"] = expected.pop("lm_head.bias")
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            # The gradient of a key's bias is nothing but rounding: a softmax does not see it.
            torch.testing.assert_close(
                parameter.grad, expected[name], rtol=1e-4, atol=1e-6 * largest, msg=name
            )
        else:
            assert expected[name] is None or not expected[name].any(), name


def test_token_types_and_untied_head():
    theirs = published(8, tie_word_embeddings=False).eval()
    ours = ours_of(theirs, MEMORIES["stored"], 0).eval()
    ids, _, mask, _ = rows(False, False)
    types = (torch.arange(LENGTH) > 20).long().expand_as(ids)
    hidden = ours.hidden_states(ids, mask, token_type_ids=types)
    expected = theirs.longformer(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.lm_head(hidden), theirs.lm_head(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_weights_come_back_bit_for_bit(tied: bool):
    theirs = published(8, tie_word_embeddings=tied)
    ours = ours_of(theirs, MEMORIES["stored"], 0)
    back = to_published(ours.state_dict())
    assert len({weight.data_ptr() for weight in back.values()}) == len(back) - tied
    expected = dict(theirs.state_dict())
    # Untied, the second name of the bias is a weight that nothing reads.
    expected["lm_head.bias"] = expected["lm_head.decoder.bias"]
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], value) for name, value in expected.items())


def test_a_pooler_and_position_ids_are_left_out():
    theirs = published(8)
    weights = dict(theirs.state_dict())
    weights |= {"longformer.pooler.dense.weight": torch.ones(16, 16)}
    weights |= {"longformer.pooler.dense.bias": torch.ones(16)}
    weights |= {"longformer.embeddings.position_ids": torch.arange(66)[None]}
    for name in ("lm_head.decoder.weight", "lm_head.decoder.bias"):  # tied, so often not saved
        del weights[name]
    config = LongformerConfig.from_dict(theirs.config.to_dict())
    Longformer(config).load_state_dict(from_published(weights, config))


def test_published_size_builds():
    config = LongformerConfig.from_dict(
        transformers.LongformerConfig(
            vocab_size=50265, max_position_embeddings=4098, attention_window=[512] * 12
        ).to_dict()
    )
    with torch.device("meta"):
        model = Longformer(config)
    with torch.device("meta"):
        theirs = transformers.LongformerForMaskedLM(
            transformers.LongformerConfig(
                vocab_size=50265, max_position_embeddings=4098, attention_window=[512] * 12
            )
        )
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(p.numel() for p in theirs.parameters())
