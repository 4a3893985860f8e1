"""Token by token with the Reformer: what is remembered, and one step.

As published, a layer remembers the normalised inputs of its attention, and an LSH layer also the
bucket of every position. The next token is hashed, and attends to the chunks around its place in
the sorted order, or, in a local layer, to its chunk and those before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch

from lsp.models.layers.chunked_attention import SELF_SCORE
from lsp.models.layers.linear import HeadLinear
from lsp.models.layers.reversible import add_branch
from lsp.models.reading import check_step
from lsp.models.reformer_layers import (
    Attention,
    LocalSelfAttention,
    LSHSelfAttention,
    Memo,
    SelfAttention,
)

if TYPE_CHECKING:
    from lsp.models.reformer import Reformer


class Growing:
    """A tensor that grows along one dimension, copied only when its storage is full."""

    def __init__(self, dim: int) -> None:
        self._dim, self._length = dim, 0
        self._storage: torch.Tensor | None = None

    def append(self, x: torch.Tensor) -> None:
        needed = self._length + x.shape[self._dim]
        if self._storage is None or needed > self._storage.shape[self._dim]:
            shape = list(x.shape)
            shape[self._dim] = max(64, 2 * needed)
            storage = x.new_empty(shape)
            if self._storage is not None:
                storage.narrow(self._dim, 0, self._length).copy_(self.value)
            self._storage = storage
        self._storage.narrow(self._dim, self._length, x.shape[self._dim]).copy_(x)
        self._length = needed

    @property
    def value(self) -> torch.Tensor:
        assert self._storage is not None
        return self._storage.narrow(self._dim, 0, self._length)


@dataclass
class LayerCache:
    """What one layer remembers.

    Attributes:
        states: (B, T, D) normalised inputs of its attention, of all tokens so far.
        buckets: (B, N, R, T) buckets of an LSH layer, from its first full chunk on.
    """

    states: Growing = field(default_factory=lambda: Growing(1))
    buckets: Growing | None = None

    def remember_buckets(self, buckets_BNRT: torch.Tensor) -> None:
        if self.buckets is None:
            self.buckets = Growing(3)
        self.buckets.append(buckets_BNRT)


@dataclass
class ReformerCache:
    """What the model remembers of the tokens so far, layer by layer."""

    layers: list[LayerCache]
    length: int = 0


@torch.no_grad()
def step(model: Reformer, input_ids_BT: torch.Tensor, cache: ReformerCache) -> torch.Tensor:
    """Reads tokens and scores the one after them.

    The first call reads a prompt of any length at once; later calls read token by token.

    Args:
        model: A causal model in evaluation mode.
        input_ids_BT: (B, T) tokens that follow those already read.
        cache: Of this text; it is brought up to date.

    Returns:
        (B, V) scores of the next token.

    Raises:
        UserError: The model is not causal, or has no more positions.
    """
    config, new = model.config, input_ids_BT.shape[1]
    check_step(model, new, cache.length, config.max_positions)
    # A prompt of one chunk needs no buckets, but the text that follows it does.
    config.settle_num_buckets(config.max_positions)
    if cache.length == 0:
        return _read_prompt(model, input_ids_BT, cache)
    for t in range(new):
        logits_BV = _read_token(model, input_ids_BT[:, t : t + 1], cache)
    return logits_BV


def _read_prompt(model: Reformer, ids_BT: torch.Tensor, cache: ReformerCache) -> torch.Tensor:
    length = ids_BT.shape[1]
    ids, segments, positions = model.padded(ids_BT, None, None)
    memos = model.reformer.memos(ids, segments)
    hidden = model.reformer.embeddings(ids, positions, None)
    attended = hidden.clone()
    hidden = hidden.clone()
    for layer, remembered, memo, ff_memo in zip(
        model.reformer.encoder.stack(), cache.layers, memos[::2], memos[1::2], strict=True
    ):
        remembered.states.append(layer.attention.layer_norm(hidden)[:, :length])
        add_branch(layer.attention, memo, hidden, attended)
        if memo.buckets is not None:
            remembered.remember_buckets(memo.buckets[..., :length])
        add_branch(layer.feed_forward, ff_memo, attended, hidden)
    cache.length = length
    return _scores(model, attended[:, length - 1 : length], hidden[:, length - 1 : length])


def _read_token(model: Reformer, ids_B1: torch.Tensor, cache: ReformerCache) -> torch.Tensor:
    position_B1 = torch.full_like(ids_B1, cache.length)
    memos = model.reformer.memos(ids_B1, None)
    attended = hidden = model.reformer.embeddings(ids_B1, position_B1, None)
    for layer, remembered, memo, ff_memo in zip(
        model.reformer.encoder.stack(), cache.layers, memos[::2], memos[1::2], strict=True
    ):
        attended = attended + _attend(layer.attention, hidden, remembered, memo)
        hidden = hidden + layer.feed_forward("after", attended, ff_memo, None, slice(0, 1))
    cache.length += 1
    return _scores(model, attended, hidden)


def _scores(model: Reformer, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    return model.lm_head(model.reformer.encoder.join(attended, hidden, None))[:, -1]


def _attend(
    attention: Attention, x_B1D: torch.Tensor, remembered: LayerCache, memo: Memo
) -> torch.Tensor:
    """The attention branch for one new token."""
    remembered.states.append(attention.layer_norm(x_B1D))
    inner = attention.self_attention
    if hasattr(inner, "query"):
        out_BN1H = _local_step(cast("LocalSelfAttention", inner), remembered, memo)
    else:
        out_BN1H = _lsh_step(cast("LSHSelfAttention", inner), remembered, memo)
    return attention.output(out_BN1H.transpose(1, 2).flatten(2))


def _local_step(attention: LocalSelfAttention, remembered: LayerCache, memo: Memo) -> torch.Tensor:
    """Attention of the last token to its chunk and those before: (B, N, 1, H)."""
    config = attention.config
    chunk, before = config.local_attn_chunk_length, config.local_num_chunks_before
    states = remembered.states.value
    past = states.shape[1] - 1
    window = states[:, max(0, (past // chunk - before) * chunk) :]
    heads = slice(0, config.num_attention_heads)
    q = _project(attention, attention.query, states[:, -1:], heads)
    k = _project(attention, attention.key, window, heads)
    v = _project(attention, attention.value, window, heads)
    scores = (q @ k.transpose(-1, -2)).float() / config.attention_head_size**0.5
    return scores.softmax(-1).to(v.dtype) @ v


def _lsh_step(attention: LSHSelfAttention, remembered: LayerCache, memo: Memo) -> torch.Tensor:
    """Attention of the last token to the chunks around its place: (B, N, 1, H)."""
    config = attention.config
    states, heads = remembered.states.value, slice(0, config.num_attention_heads)
    length, chunk = states.shape[1], config.lsh_attn_chunk_length
    if remembered.buckets is None:
        # Not enough tokens for a chunk so far: attention is over all of them.
        qk = _project(attention, attention.query_key, states, heads)
        v = _project(attention, attention.value, states, heads)
        own = torch.arange(length, device=qk.device) == length - 1
        if length >= chunk:
            remembered.remember_buckets(attention.hash(qk, memo, heads))
        return _shared_attention(qk[:, :, -1:], qk, v, own)[0]
    q_BN1H = _project(attention, attention.query_key, states[:, -1:], heads)
    remembered.remember_buckets(attention.hash(q_BN1H, memo, heads))
    order_BNRT = remembered.buckets.value.argsort(dim=-1, stable=True)
    place_BNR = (order_BNRT == length - 1).int().argmax(dim=-1)
    first_BNR = (place_BNR // chunk - config.lsh_num_chunks_before) * chunk
    around = 1 + config.lsh_num_chunks_before + config.lsh_num_chunks_after
    window_W = torch.arange(around * chunk, device=states.device)
    # As published, the sorted order is a ring, on which a short text repeats.
    index_BNRW = order_BNRT.gather(-1, (first_BNR[..., None] + window_W) % length)
    outs = []
    for head in range(config.num_attention_heads):
        one, index_BRW = slice(head, head + 1), index_BNRW[:, head]
        picked = torch.stack([s[i] for s, i in zip(states, index_BRW, strict=True)])
        flat_BXD = picked.flatten(1, 2)
        k = _project(attention, attention.query_key, flat_BXD, one).unflatten(
            2, index_BRW.shape[1:]
        )
        v = _project(attention, attention.value, flat_BXD, one).unflatten(2, index_BRW.shape[1:])
        q = q_BN1H[:, one, None]
        out, lse = _shared_attention(q, k, v, (index_BRW == length - 1)[:, None, :, None])
        share = (lse - lse.logsumexp(2, keepdim=True)).exp().to(out.dtype)
        outs.append((out * share).sum(2))
    return torch.cat(outs, dim=1)


def _project(
    attention: SelfAttention, linear: HeadLinear, x_BLD: torch.Tensor, heads: slice
) -> torch.Tensor:
    return attention.split(attention.project(linear, x_BLD, heads))


def _shared_attention(
    q: torch.Tensor, qk: torch.Tensor, v: torch.Tensor, own: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with shared queries and keys, to itself only as a last resort.

    Args:
        q: (..., 1, H) query.
        qk: (..., W, H) keys before they are normalised.
        v: (..., W, H) values.
        own: (..., 1, W) or (W,) where the key is the query's own.

    Returns:
        (..., 1, H) output, and (..., 1, 1) log of the sum of the exponentiated scores.
    """
    wide = qk.float()
    k = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) / qk.shape[-1] ** 0.5
    scores = (q.float() @ k.transpose(-1, -2)).masked_fill(own, SELF_SCORE)
    lse = scores.logsumexp(-1, keepdim=True)
    return ((scores - lse).exp().to(v.dtype) @ v), lse
