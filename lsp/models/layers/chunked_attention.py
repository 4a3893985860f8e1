"""The kernel that LSH and local attention share: blocks of chunks that see neighbouring chunks.

Scores exist for one block at a time, small enough to stay in a core's cache, in both passes: the
backward computes them again from what the forward kept of each softmax (as in flash attention,
2205.14135). Scores are kept in base 2, since `exp2` is several times cheaper than `exp` on a CPU.
Masks are arithmetic (a broadcast subtraction and a clamp), which is several times cheaper than
comparing and filling.

The legend is that of `lsp.core.batch` and of `chunks`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from math import log
from typing import Any, Protocol, TypeVar

import torch

from lsp.models.layers.chunks import Window, Workspace

F = TypeVar("F", bound=Callable[..., Any])

LN2 = log(2.0)
LOG2E = 1 / LN2

SELF_SCORE = -1e5
"""Score of a token with itself in LSH attention (2001.04451, section 2): the last resort."""
MASKED_SCORE = -1e9
"""Score of a key that must not be seen, in the published model."""

# What stands for them in base 2. A later key is at -FAR times its distance, padding at -FAR; the
# clamp brings both to FLOOR, so that a row that sees nothing is uniform; another document's key is
# then pushed below everything. The steps are far apart: exp2 of any difference of two is exactly 0.
# FAR is a power of two so that position * FAR is exact in fp32 (up to 2**24 positions).
SELF_LEVEL = SELF_SCORE * LOG2E
FAR = 2.0**20
FLOOR = -FAR / 2
OTHER_DOCUMENT = 2.0**30


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The type of scores, softmax and sums: fp32, or fp64 where the input is."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def without_autocast(function: F) -> F:
    """Decorates `forward` or `backward`: each operation runs in the types written here.

    A caller may run either inside autocast, which would cast some operations and not others.
    """

    @wraps(function)
    def plain(ctx: Any, x: torch.Tensor, *arguments: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return function(ctx, x, *arguments)

    return typing.cast(F, plain)


class Dropout:
    """Attention dropout that a seed replays; the global generator is not touched."""

    def __init__(self, rate: float, seed: int | None, device: torch.device) -> None:
        # Sixteen random bits decide about a weight: a 64-bit draw serves four of them.
        self.dropped = round(rate * 2**16)
        self.seed = seed
        self.generator = torch.Generator(device)
        assert not self.dropped or seed is not None, "dropout needs a seed"

    def restart(self, unit: int) -> None:
        """Begins the numbers of one unit of work: the same in the forward and the backward."""
        if self.dropped:
            assert self.seed is not None
            self.generator.manual_seed((self.seed * 1_000_003 + unit) % 2**63)

    def apply(self, weights: torch.Tensor, workspace: Workspace) -> None:
        """Drops some of `weights` in place and scales up the rest."""
        if not self.dropped:
            return
        draws = workspace.take("draws", (-(-weights.numel() // 4),), torch.int64)
        draws.random_(-(2**63), None, generator=self.generator)
        keep = workspace.take("keep", tuple(weights.shape), weights.dtype)
        keep.view(-1).copy_(draws.view(torch.int16)[: weights.numel()])
        # A draw is one of -2**15 .. 2**15-1, and the lowest `dropped` of them are dropped.
        keep.sub_(self.dropped - 2**15 - 1).clamp_(0, 1).mul_(2**16 / (2**16 - self.dropped))
        weights.mul_(keep)


class RowMask:
    """What documents and padding hide in one row, for the blocks where they hide anything.

    The positions are those of the attention's own order, with the neighbours around them. In LSH
    attention that order sorts by document first and padding last in each, so this is the same for
    every head and round.
    """

    def __init__(
        self, window: Window, document_E: torch.Tensor, padding_E: torch.Tensor, dtype: torch.dtype
    ) -> None:
        document_1E = document_E.to(dtype)[None] * OTHER_DOCUMENT
        padding_1E = padding_E.to(dtype)[None] * FAR
        self.q_document = window.query_codes(document_1E)
        self.k_document = window.key_codes(document_1E)
        self.k_padding = window.key_codes(padding_1E)
        # Most chunks see one document and no padding.
        q_first = self.q_document[:, :, :1]
        hides = (self.k_document != q_first) | (self.k_padding != 0)
        hides = hides.any(-1).flatten() | (self.q_document != q_first).flatten(2).any(-1).flatten()
        # On a GPU, masking costs less than waiting for the answer.
        self.hides = hides.tolist() if document_E.device.type == "cpu" else None

    def block(self, first: int, last: int) -> tuple[torch.Tensor, ...] | None:
        """Codes of the queries' documents, the keys' documents and the keys' padding, or None."""
        if self.hides is not None and not any(self.hides[first:last]):
            return None
        codes = self.q_document, self.k_document, self.k_padding
        return tuple(code[:, first:last] for code in codes)


class Scored(Protocol):
    """Queries, keys and values of a block, and how the ones score the others."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None

    def scores(self, workspace: Workspace) -> torch.Tensor:
        """Scores in base 2, masked: (M, K, W), valid until the next call."""
        ...

    def fill_self(self, scores: torch.Tensor, value: float) -> None:
        """Writes `value` wherever a token meets itself, where that is not like any other key."""
        ...


@dataclass
class Block:
    """Queries of some chunks and the keys that they may see.

    Attributes:
        q: (M, K, H) queries.
        k: (M, W, H) keys, scaled so that a product with a query is a score in base 2.
        v: (M, W, H) values.
        window: What a chunk sees.
        heads: T, of M = T * C.
        places: FAR times the position of each query (T, C, K, 1) and key (T, C, 1, W).
        causal: Whether later keys are hidden.
        hidden: What `RowMask.block` says.
        self_edges: In LSH attention, how many chunks at the start and at the end of the block look
            into another round, where a token meets itself again; None in local attention.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    window: Window
    heads: int
    places: tuple[torch.Tensor, torch.Tensor]
    causal: bool
    hidden: tuple[torch.Tensor, ...] | None
    self_edges: tuple[int, int] | None

    def scores(self, workspace: Workspace) -> torch.Tensor:
        shape = (self.q.shape[0], self.q.shape[1], self.k.shape[1])
        dtype = compute_dtype(self.q)
        scores = workspace.take("scores", shape, dtype)
        scores_TCKW = scores.unflatten(0, (self.heads, -1))
        if self.causal:
            q_place, k_place = self.places
            torch.sub(q_place.expand(self.heads, -1, -1, -1), k_place, out=scores_TCKW)
            scores.clamp_(max=0)
        if self.q.dtype != dtype:
            half = workspace.take("half", shape, self.q.dtype)
            torch.bmm(self.q, self.k.transpose(1, 2), out=half)
            if self.causal:
                scores += workspace.take("weights", shape, dtype).copy_(half)
            else:
                scores.copy_(half)
        elif self.causal:
            scores.baddbmm_(self.q, self.k.transpose(1, 2))
        else:
            torch.bmm(self.q, self.k.transpose(1, 2), out=scores)
        if self.hidden is not None:
            q_document, k_document, k_padding = self.hidden
            gap = workspace.take("weights", (1, *scores_TCKW.shape[1:]), dtype)
            torch.sub(q_document, k_document, out=gap).abs_()
            scores_TCKW.sub_(k_padding).clamp_(min=FLOOR).sub_(gap)
        self.fill_self(scores, SELF_LEVEL)
        return scores

    def fill_self(self, scores: torch.Tensor, value: float) -> None:
        """Writes `value` wherever a token meets itself (LSH attention only)."""
        if self.self_edges is None:
            return
        before = self.window.before * self.window.chunk_length
        scores.diagonal(before, 1, 2).fill_(value)
        scores_TCKW = scores.unflatten(0, (self.heads, -1))
        chunks = scores_TCKW.shape[1]
        q_place, k_place = self.places
        first, last = self.self_edges
        for edge in (slice(0, first), slice(chunks - last, chunks)):
            if edge.start < edge.stop:
                same = q_place[:, edge] == k_place[:, edge]
                scores_TCKW[:, edge].masked_fill_(same, value)


@dataclass
class Rows:
    """What is kept of each softmax, one number per query, in the caller's shape.

    The weights of a row are `exp2(scores - base) * share`.

    `share` is 1 but for rows stuck at one level, where everything is masked or nothing but the
    token itself is visible: there the published model's sum over a row rounds (1e9 + log n is 1e9
    in fp32), and so does ours, to give the same output.
    """

    base: torch.Tensor
    share: torch.Tensor
    log_sum: torch.Tensor  # natural, as the published model has it: compared between rounds


LEVELS = ((SELF_LEVEL, SELF_SCORE), (FLOOR, MASKED_SCORE))


def finish_rows(
    highest: torch.Tensor, total: torch.Tensor, levels: tuple[tuple[float, float], ...] = LEVELS
) -> Rows:
    """Makes rows of the highest score in each, and of the sum of `exp2(scores - highest)`.

    `levels` are those that a row can be stuck at: here, and in the published model.
    """
    base = highest + total.log2()
    rows = Rows(base, torch.ones_like(base), base * LN2)
    for level, published in levels:
        stuck = highest == level
        log_sum = published + total.log()
        rows.base = torch.where(stuck, highest, rows.base)
        rows.share = torch.where(stuck, (published - log_sum).exp(), rows.share)
        rows.log_sum = torch.where(stuck, log_sum, rows.log_sum)
    return rows


def block_forward(
    block: Scored, dropout: Dropout, workspace: Workspace
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of one block, before the rows are normalised.

    Returns:
        The sum of values (M, K, H) weighted by `exp2(scores - highest)`, valid until the next
        call; highest (M, K, 1); the sum of the weights (M, K, 1).
    """
    weights = block.scores(workspace)
    highest = weights.amax(-1, keepdim=True)
    total = weights.sub_(highest).exp2_().sum(-1, keepdim=True)
    dropout.apply(weights, workspace)
    weights = cast(weights, block.v.dtype, "half", workspace)
    shape = (*block.q.shape[:2], block.v.shape[-1])
    out = torch.bmm(weights, block.v, out=workspace.take("out", shape, block.v.dtype))
    return out, highest, total


def block_backward(
    block: Scored,
    grad_MKH: torch.Tensor,
    base: torch.Tensor,
    delta: torch.Tensor | None,
    dropout: Dropout,
    workspace: Workspace,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of one block, valid until the next call.

    Args:
        block: As in the forward.
        grad_MKH: Gradient of the output times the share of its row, in the inputs' type.
        base: (M, K, 1) of the rows.
        delta: (M, K, 1) inner product of the output and its gradient, times the share; None where
            the softmax is over this block alone and gives it too.
        dropout: Restarted for the same unit as in the forward.
        workspace: Of buffers.

    Returns:
        Gradients of the queries (M, K, H), to be multiplied by ln 2 as the keys here are in base
        2, of the keys as if they were in base e (M, W, H), and of the values (M, W, H).
    """
    weights = block.scores(workspace).sub_(base).exp2_()
    shape, dtype, half_dtype = tuple(weights.shape), weights.dtype, grad_MKH.dtype
    grads = workspace.take("weights", shape, dtype)
    if half_dtype == dtype:
        torch.bmm(grad_MKH, block.v.transpose(1, 2), out=grads)
    else:
        half = workspace.take("half", shape, half_dtype)
        grads.copy_(torch.bmm(grad_MKH, block.v.transpose(1, 2), out=half))
    kept = weights
    if dropout.dropped:
        # With Z the kept and scaled entries: dV = (P Z)' dO and dS = P (Z dP - delta).
        kept = workspace.take("kept", shape, dtype).fill_(1)
        dropout.apply(kept, workspace)
        grads.mul_(kept)
        kept.mul_(weights)
    kept = cast(kept, half_dtype, "half", workspace)
    grad_v = workspace.take("grad_v", tuple(block.v.shape), half_dtype)
    torch.bmm(kept.transpose(1, 2), grad_MKH, out=grad_v)
    if delta is None:
        sums = grads.mul_(weights).sum(-1, keepdim=True)
        grads.addcmul_(weights, sums, value=-1)
    else:
        grads.sub_(delta).mul_(weights)
    block.fill_self(grads, 0.0)
    if block.hidden is not None:
        # A row where everything is masked has constant scores.
        grads.mul_(base > FLOOR / 2)
    grads = cast(grads, half_dtype, "half", workspace)
    grad_q = workspace.take("grad_q", tuple(block.q.shape), half_dtype)
    grad_k = workspace.take("grad_k", tuple(block.k.shape), half_dtype)
    torch.bmm(grads, block.k, out=grad_q)
    torch.bmm(grads.transpose(1, 2), block.q, out=grad_k)
    return grad_q, grad_k, grad_v


def cast(x: torch.Tensor, dtype: torch.dtype, name: str, workspace: Workspace) -> torch.Tensor:
    """`x` in another type, in the buffer of that name; itself where it has that type."""
    return x if x.dtype == dtype else workspace.take(name, tuple(x.shape), dtype).copy_(x)
