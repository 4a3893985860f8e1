"""MRA in torch against dense attention, against its definition, and against itself with padding."""

from __future__ import annotations

import torch

from lsp.models.hub.mra import BLOCK, SMALL, attend

SCALE = 0.4


def qkv(groups: int, length: int, size: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(groups, length, size, dtype=torch.float64, requires_grad=True) for _ in range(3)
    ]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.mT * SCALE).masked_fill(~real[:, None], -torch.inf)
    return (scores.softmax(-1) @ v) * real[..., None]


def gradients(out: torch.Tensor, xs: list[torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad((out * torch.randn_like(out)).sum(), xs))


def test_all_blocks_are_dense_attention() -> None:
    xs = qkv(3, 4 * BLOCK)
    real = torch.ones(3, 4 * BLOCK, dtype=torch.bool)
    real[1, 70:] = False
    for coarse in (True, False):
        found = attend(*xs, real, blocks=16, scale=SCALE, coarse=coarse)
        expected = dense(*xs, real)
        # The published divisor has 1e-6 added, and is at least 1.
        torch.testing.assert_close(found, expected, rtol=2 * SMALL, atol=2 * SMALL)
        torch.testing.assert_close(
            gradients(found, xs), gradients(expected, xs), rtol=1e-4, atol=1e-5
        )


def test_follows_the_definition() -> None:
    """Blocks that are not chosen have the scores of their means, position by position."""
    length, blocks = 4 * BLOCK, 6
    q, k, v = xs = qkv(2, length)
    real = torch.ones(2, length, dtype=torch.bool)
    found = attend(*xs, real, blocks=blocks, scale=SCALE, diagonal_blocks=1, first_blocks=1)
    mean_q, mean_k = (x.unflatten(1, (-1, BLOCK)).mean(2) for x in (q, k))
    estimate = mean_q @ mean_k.mT * SCALE
    rank = estimate - estimate.amax(-1, keepdim=True) + 5e3 * torch.eye(4)
    rank[:, :1] += 5e3
    rank[:, :, :1] += 5e3
    chosen = torch.zeros(2, 16).scatter(1, rank.flatten(1).topk(blocks).indices, 1.0).view(2, 4, 4)
    assert chosen[:, 0, 0].all()
    wide = [x.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2) for x in (estimate, chosen)]
    scores = torch.where(wide[1] == 1, q @ k.mT * SCALE, wide[0])
    # A block that is estimated has the mean of its values.
    mean_v = v.unflatten(1, (-1, BLOCK)).mean(2).repeat_interleave(BLOCK, 1)
    weights = scores.softmax(-1)
    expected = (weights * wide[1]) @ v + (weights * (1 - wide[1])) @ mean_v
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(found, xs), gradients(expected, xs), rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing() -> None:
    xs = qkv(2, 4 * BLOCK)
    real = torch.ones(2, 4 * BLOCK, dtype=torch.bool)
    real[:, 2 * BLOCK - 7 :] = False
    for coarse in (True, False):
        given = {"blocks": 3, "scale": SCALE, "coarse": coarse, "diagonal_blocks": 1}
        padded = attend(*xs, real, **given)
        short = attend(*(x[:, : 2 * BLOCK] for x in xs), real[:, : 2 * BLOCK], **given)
        torch.testing.assert_close(padded[:, : 2 * BLOCK], short, rtol=1e-12, atol=1e-12)
        assert not padded[:, 2 * BLOCK - 7 :].any()
        other = [x + ~real[..., None] * 100.0 for x in xs]
        assert torch.equal(attend(*other, real, **given), padded)


def test_gradients_by_finite_differences() -> None:
    xs = qkv(1, 2 * BLOCK, size=2)
    real = torch.ones(1, 2 * BLOCK, dtype=torch.bool)
    real[:, 50:] = False
    assert torch.autograd.gradcheck(
        lambda *xs: attend(*xs, real, blocks=2, scale=SCALE), xs, fast_mode=True
    )
