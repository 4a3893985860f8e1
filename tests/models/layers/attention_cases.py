"""Rows, masks and block sizes that the attention tests share."""

from collections.abc import Callable

import pytest
import torch

from lsp.models.layers import local, lsh_kernel, sliding_window
from lsp.models.layers.chunks import documents

SEGMENTS = {
    "none": None,
    "padded": [[1] * 22 + [0] * 10, [1] * 32],
    "padded_left": [[0] * 5 + [1] * 27, [1] * 32],
    "padded_inside": [[1] * 9 + [0] * 3 + [1] * 20, [0] * 2 + [1] * 30],
    "packed": [[1] * 13 + [2] * 11 + [3] * 8, [1] * 16 + [2] * 16],
    "packed_padded": [[1] * 9 + [0] * 3 + [2] * 12 + [0] * 8, [1] * 3 + [2] * 2 + [0] * 27],
    "only_padding": [[0] * 32, [1] * 32],
}
WINDOWS = {
    "before1": (4, 1, 0),
    "both": (4, 1, 1),
    "alone": (8, 0, 0),
    "after2": (4, 0, 2),
    "around_the_ring": (8, 3, 1),
    "one_chunk": (32, 1, 0),
    "shorter_than_chunk": (64, 1, 0),
}
BLOCKS = {"one_chunk": 1, "three_chunks": 3, "three_heads": -3}
"""Chunks computed together; or all of them, and heads computed together, as on a GPU."""


def segments(name: str) -> torch.Tensor | None:
    rows = SEGMENTS[name]
    return None if rows is None else torch.tensor(rows)


def set_blocks(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """Makes attention cut its work into blocks of that kind."""
    sizes = (lambda *_: (1, blocks)) if blocks > 0 else (lambda *_: (-blocks, 10**6))
    for module in (lsh_kernel, local, sliding_window):
        monkeypatch.setattr(module, "block_sizes", sizes)


def vectors(count: int, length: int = 32, heads: int = 4, dtype=torch.float64) -> list:
    """Random (2, heads, length, 6) tensors, as a view of what a projection gives."""
    torch.manual_seed(0)
    shape = (2, length, heads, 6)
    return [
        torch.randn(shape, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_()
        for _ in range(count)
    ]


def with_gradients(out: torch.Tensor, inputs: list) -> list:
    """The output and the gradients of a fixed weighting of it."""
    torch.manual_seed(1)
    weights = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


def assert_documents_stay_apart(
    attend: Callable[..., torch.Tensor], count: int, ids: torch.Tensor, document: int
) -> None:
    """Whatever happens in a document, the others are bit for bit the same, gradients too.

    `attend` takes `count` tensors as `vectors` makes them.
    """
    target, others = ids == document, documents(ids) != document - 1
    inputs = vectors(count, dtype=torch.float32)
    changed = [x.detach().clone() for x in inputs]
    for x in changed:
        x.transpose(1, 2)[target] = 50 * torch.randn(int(target.sum()), 4, 6)
        x.requires_grad_()
    results = (with_gradients(attend(*given), given) for given in (inputs, changed))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.transpose(1, 2)[others], b.transpose(1, 2)[others])
        assert not torch.equal(a.transpose(1, 2)[target], b.transpose(1, 2)[target])
