"""Attention within documents equals attention under a mask of all scores, values and gradients."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lsp.core.errors import UserError
from lsp.models.hub import kernels
from lsp.models.hub.attention import (
    dense_mask,
    documents,
    each_document,
    interface,
    layout_of,
    whole_rows,
)
from tests.models.largest_tensor import LargestTensor

PACKED = torch.tensor([[1] * 5 + [2] * 9 + [0] * 2, [1] * 7 + [0] + [2] * 3 + [3] * 5])
EQUAL = torch.tensor([[1] * 8 + [2] * 8, [1] * 8 + [0] * 8])
WHOLE = torch.ones(2, 16, dtype=torch.int64)
LONG = torch.tensor([[1] * 200 + [2] * 100 + [0] * 60, [1] * 130 + [2] * 230])
KEYS = torch.tensor([[1] * 3 + [2] * 8 + [0], [1] * 4 + [3] * 6 + [0] * 2])


def qkv(
    length: int, keys: int, heads: int = 4, key_heads: int = 4, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(2, heads, length, 8), (2, key_heads, keys, 8), (2, key_heads, keys, 8)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def results(
    attend: Any, xs: list[torch.Tensor], given: torch.Tensor, window: int | None, real: torch.Tensor
) -> list[torch.Tensor]:
    """Output at real positions, and the gradients of something that depends on all of it."""
    if attend is kernels.flex or not xs[0].requires_grad:  # on a CPU it has no gradients
        xs = [x.detach() for x in xs]
        return [attend(*xs, given, 0.3, 0.0, window) * real[:, None, :, None]]
    out = attend(*xs, given, 0.3, 0.0, window)
    shown = out * real[:, None, :, None]
    torch.manual_seed(1)
    weighted = (shown * torch.randn(shown.shape, dtype=torch.float64).to(shown.dtype)).sum()
    return [shown.detach(), *torch.autograd.grad(weighted, xs)]


@pytest.mark.parametrize("attend", [each_document, kernels.flex], ids=["lsp", "flex"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_ways"])
@pytest.mark.parametrize(
    "segments", [PACKED, EQUAL, WHOLE, LONG], ids=["packed", "equal", "whole", "long"]
)
@pytest.mark.parametrize("key_heads", [4, 2], ids=["heads", "grouped"])
def test_equals_whole_rows_under_a_mask(
    attend: Any, causal: bool, segments: torch.Tensor, key_heads: int
) -> None:
    dtype = torch.float64 if attend is each_document else torch.float32
    xs = qkv(segments.shape[1], segments.shape[1], key_heads=key_heads, dtype=dtype)
    given = documents(segments, causal)
    expected = results(whole_rows, xs, given, None, segments != 0)
    found = results(attend, xs, given, None, segments != 0)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found, expected[: len(found)], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [1, 4, 130, 400])
@pytest.mark.parametrize("attend", [each_document, kernels.flex], ids=["lsp", "flex"])
def test_windows_are_kept(attend: Any, window: int) -> None:
    dtype = torch.float64 if attend is each_document else torch.float32
    xs = qkv(LONG.shape[1], LONG.shape[1], key_heads=2, dtype=dtype)
    given = documents(LONG, True)
    expected = results(whole_rows, xs, given, window, LONG != 0)
    found = results(attend, xs, given, window, LONG != 0)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found, expected[: len(found)], rtol=tolerance, atol=tolerance)


def test_queries_see_keys_of_the_same_document() -> None:
    """A document without keys gets nothing; padding is not compared."""
    xs = qkv(16, 12)
    given = documents(PACKED, False, KEYS)
    real = (PACKED != 0) & torch.tensor([[True], [True]])
    real[1] &= PACKED[1] != 2  # has no keys
    expected = results(whole_rows, xs, given, None, real)
    found = results(each_document, xs, given, None, real)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    out = each_document(*xs, given, 0.3, 0.0, None)
    assert not out[1, :, PACKED[1] == 2].any()


def test_masks_by_hand() -> None:
    segments = torch.tensor([[1, 1, 2, 0]])
    both = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert dense_mask(documents(segments, False))[0, 0].int().tolist() == both
    causal = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert dense_mask(documents(segments, True))[0, 0].int().tolist() == causal
    cross = dense_mask(documents(segments, False, torch.tensor([[2, 1]])))
    assert cross[0, 0].int().tolist() == [[0, 1], [0, 1], [1, 0], [0, 0]]


def test_the_layout_is_found_once() -> None:
    given = documents(PACKED, True)
    assert layout_of(given) is layout_of(given)
    assert layout_of(given).queries == (5, 9, 2, 7, 1, 3, 5)


def test_a_learned_bias_is_added() -> None:
    q, k, v = qkv(16, 16)
    bias = torch.randn(1, 4, 16, 16, dtype=torch.float64, requires_grad=True)
    given = documents(PACKED, True)
    attention = interface(each_document)
    out, _ = attention(torch.nn.Module(), q, k, v, given, scaling=1.0, position_bias=bias)
    scores = (q @ k.transpose(2, 3) + bias).masked_fill(~dense_mask(given), -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_other_masks_are_left_to_transformers() -> None:
    q, k, v = qkv(16, 16)
    module = torch.nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    out, _ = interface(each_document)(module, q, k, v, None, scaling=0.3)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(out, expected.transpose(1, 2))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_ways"])
@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_is_given_the_ends_of_documents(
    causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the kernel that does what its documentation says."""
    if window is not None and not causal:
        pytest.skip("windows are of causal models")

    def flash_attn_varlen_func(q: Any, k: Any, v: Any, **given: Any) -> torch.Tensor:
        ends = given["cu_seqlens_q"].tolist()
        assert given["cu_seqlens_q"].dtype == torch.int32
        assert given["max_seqlen_q"] == 9
        outs = []
        for start, stop in itertools.pairwise(ends):
            seen = torch.ones(stop - start, stop - start, dtype=torch.bool)
            left, right = given["window_size"]
            seen = seen.tril(right) if right >= 0 else seen
            seen = seen.triu(-left) if left >= 0 else seen
            seen = seen.tril() if given["causal"] else seen
            parts = [x[None, start:stop].transpose(1, 2) for x in (q, k, v)]
            outs.append(
                F.scaled_dot_product_attention(
                    *parts, attn_mask=seen, scale=given["softmax_scale"], enable_gqa=True
                )[0].transpose(0, 1)
            )
        return torch.cat(outs)

    fake = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    xs = qkv(16, 16, key_heads=2, dtype=torch.bfloat16)
    given = documents(PACKED, causal)
    found = results(kernels.varlen, xs, given, window, PACKED != 0)
    doubles = [x.detach().double().requires_grad_() for x in xs]
    expected = results(whole_rows, doubles, given, window, PACKED != 0)
    torch.testing.assert_close([x.double() for x in found], expected, rtol=5e-2, atol=5e-2)


def test_flex_attention_trains_on_cuda_alone() -> None:
    with pytest.raises(UserError, match="has no gradients on a CPU"):
        kernels.flex(*qkv(16, 16), documents(PACKED, True), 0.3, 0.0, None)


def test_flash_attention_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    given = documents(PACKED, True)
    with pytest.raises(UserError, match="precision=bf16"):
        kernels.varlen(*qkv(16, 16), given, 0.3, 0.0, None)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(UserError, match="flash-attn"):
        kernels.varlen(*qkv(16, 16, dtype=torch.bfloat16), given, 0.3, 0.0, None)


def test_memory_is_linear_in_the_length() -> None:
    """No tensor of a causal pass over documents is nearly as large as its scores."""
    segments = torch.ones(1, 2048, dtype=torch.int64)
    segments[:, 1500:] = 2
    torch.manual_seed(0)
    xs = [torch.randn(1, 2, 2048, 8, requires_grad=True) for _ in range(3)]
    with LargestTensor() as largest:
        for window in (None, 64):
            each_document(*xs, documents(segments, True), 0.3, 0.0, window).sum().backward()
    assert largest.largest < 2048 * 2048 / 8
