"""A softmax estimated with few tokens of a large vocabulary (Jean et al., 1412.2007)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lsp.core.batch import IGNORE_INDEX

NEVER = -1e30
"""Score of a drawn token that is the one to be predicted: it is there already."""


class LogUniformSampler(nn.Module):
    """Draws tokens by rank: token t with probability log((t + 2) / (t + 1)) / log(V + 1).

    As in the published sampler, tokens are drawn 2 S times and each is taken once, so their number
    differs from draw to draw.

    Args:
        vocab_size: V, the likeliest tokens first.
        samples: S.

    Attributes:
        log_q: (V,) logarithm of the probability that a token is among the drawn ones.
    """

    def __init__(self, vocab_size: int, samples: int) -> None:
        super().__init__()
        self.tries = 2 * samples
        edges = torch.arange(1, vocab_size + 2, dtype=torch.float64).log()
        probabilities = edges.diff() / edges[-1]
        log_q = (-torch.expm1(self.tries * torch.log1p(-probabilities))).log()
        self.register_buffer("log_q", log_q.float(), persistent=False)
        self.log_q: torch.Tensor

    def draw(self, seed: int) -> torch.Tensor:
        """(S',) tokens in rising order, a function of the seed alone, whatever the device."""
        vocab_size = len(self.log_q)
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(self.tries, dtype=torch.float64, generator=generator)
        # The inverse of the cumulated probabilities, log(t + 2) / log(V + 1).
        ranks = ((vocab_size + 1) ** uniform).floor().long() - 1
        return ranks.clamp_(0, vocab_size - 1).unique().to(self.log_q.device)


def sampled_losses(
    scores: Callable[..., torch.Tensor],
    x_TE: torch.Tensor,
    labels_T: torch.Tensor,
    sampled_S: torch.Tensor,
    log_q_V: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy among the token to be predicted and the drawn ones, corrected for the draw.

    Args:
        scores: `scores(x, tokens, paired=False)`: see `ClusterHead`.
        x_TE: (T, E) hidden states.
        labels_T: (T,) targets, -100 where nothing is predicted.
        sampled_S: (S,) drawn tokens.
        log_q_V: (V,) see `LogUniformSampler`.

    Returns:
        (T,) fp32 losses in nats, 0 where nothing is predicted.
    """
    ignored_T = labels_T == IGNORE_INDEX
    target_T = labels_T.masked_fill(ignored_T, 0)
    true_T = at_least_fp32(scores(x_TE, target_T, paired=True)) - log_q_V[target_T]
    drawn_TS = at_least_fp32(scores(x_TE, sampled_S)) - log_q_V[sampled_S]
    drawn_TS = drawn_TS.masked_fill(target_T[:, None] == sampled_S, NEVER)
    losses_T = torch.logaddexp(true_T, drawn_TS.logsumexp(-1)) - true_T
    return losses_T.masked_fill(ignored_T, 0.0)


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """What logarithms of many probabilities are made of."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
