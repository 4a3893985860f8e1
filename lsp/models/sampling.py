"""Choosing the next token, and generating text token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lsp.core.errors import require
from lsp.core.seeding import stream
from lsp.models.interface import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Logits are divided by it.
        top_k: Only the so many likeliest tokens can be chosen; 0 for all.
        top_p: Only the likeliest tokens that together reach this probability can be chosen
            (nucleus sampling, 1904.09751, section 3.1).
        greedy: Take the likeliest token instead.
        seed: The same seed gives the same text.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.temperature > 0,
            f"temperature={self.temperature} must be positive; greedy=true takes the likeliest "
            "token",
        )
        require(self.top_k >= 0, f"top_k={self.top_k} must be 0 (all tokens) or more, e.g. 40")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1, e.g. 0.95")
        require(self.seed >= 0, f"seed={self.seed} must be 0 or more")


class Generator(Protocol):
    """A causal model that remembers what it has read."""

    config: Any

    def new_cache(self) -> Any:
        """An empty memory for `step`."""

    def step(self, input_ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """Scores (B, V) of the token after `input_ids` (B, T), which follow what `cache` holds."""


def next_token_probabilities(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities that the next token is drawn from, in token order.

    Temperature first, then `top_k`, then `top_p`. Ties at a border are all kept, so that the
    result does not depend on how a device sorts.

    Args:
        logits_V: (V,) scores of the next token.
        sampling: How to choose.

    Returns:
        (V,) float64 probabilities on the CPU.

    Raises:
        UserError: A score is not a number, as after training has diverged.
    """
    scores_V = logits_V.detach().cpu().double()
    require(
        not bool(scores_V.isnan().any()),
        "the model's scores are not numbers (NaN): choose an earlier checkpoint",
    )
    if sampling.greedy:
        return torch.nn.functional.one_hot(scores_V.argmax(), len(scores_V)).double()
    scores_V = (scores_V - scores_V.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scores_V):
        border = scores_V.topk(sampling.top_k).values[-1]
        scores_V = scores_V.masked_fill(scores_V < border, -torch.inf)
    probabilities_V = scores_V.softmax(0)
    if sampling.top_p < 1:
        sorted_V = probabilities_V.sort(descending=True).values
        # The token that brings the sum to top_p is the last one kept.
        last = min(int((sorted_V.cumsum(0) < sampling.top_p).sum()), len(sorted_V) - 1)
        probabilities_V = probabilities_V.where(probabilities_V >= sorted_V[last], 0.0)
        probabilities_V = probabilities_V / probabilities_V.sum()
    return probabilities_V


class Rereading:
    """Reads the whole text again for every token: what every cache has to agree with.

    Attributes:
        config: The model's.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.config, self._model = model.config, model

    def new_cache(self) -> Any:
        """Of the tokens alone."""
        return LanguageModel.new_cache(self._model)

    def step(self, input_ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """See `Generator`."""
        device = next(self._model.parameters()).device
        return LanguageModel.step(self._model, input_ids.to(device), cache)


def generate_ids(
    model: Any,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
    seed: int = 0,
    sample: int = 0,
    eos_id: int | None = None,
    cache: bool = True,
) -> Iterator[int]:
    """Continues a prompt token by token, with the model's memory of what it has read.

    With a cache the scores are those of a pass over the whole text, but for layers of LSH attention
    over more than a chunk (and of local attention to more chunks before than the text has, which
    as published repeats the text). In such a pass every token takes a place in the sorted order,
    the last one too, and so moves others into the next chunk: which keys an *earlier* token sees
    depends on it, and so do that token's states in the layers above. A cache keeps those states as
    they were when they were computed, as the published one does; to be equal, it would have to
    compute all of them again for every token, which is what `cache=False` does. A Transformer-XL
    remembers `mem_len` tokens: beyond them a pass over the whole text sees more, unless
    `same_length`.

    A model that `config.answers` reads the prompt with an encoder, and its decoder writes another
    text.

    Args:
        model: A causal model in evaluation mode, a `Generator`.
        prompt_ids: Tokens to continue, at least one.
        max_new_tokens: Length of the continuation. It is shorter where the model ends the text, or
            has no more positions.
        temperature: See `Sampling`, as for the next four.
        top_k: See `Sampling`.
        top_p: See `Sampling`.
        greedy: See `Sampling`.
        seed: See `Sampling`.
        sample: Number of the continuation, among several with one seed.
        eos_id: Token that ends a text; it is not part of the result.
        cache: Whether the model remembers what it has read, rather than reading the whole text
            again for every token.

    Returns:
        An iterator over the new tokens, each computed when asked for.

    Raises:
        UserError: The prompt is empty, has unknown tokens, or leaves no position free; the model
            cannot generate. All are raised before the first token is asked for.
    """
    sampling = Sampling(temperature, top_k, top_p, greedy, seed)
    config, length = model.config, len(prompt_ids)
    answers = getattr(config, "answers", False)
    require(
        config.is_decoder or answers,
        "this model is trained to fill in masked tokens, not to continue",
    )
    require(length > 0, "the prompt is empty: give at least one token to continue")
    require(
        length < config.max_positions,
        f"the prompt has {length} tokens, and the model reads at most {config.max_positions}, new "
        "ones included: shorten it",
    )
    require(
        min(prompt_ids) >= 0 and max(prompt_ids) < config.vocab_size,
        f"the prompt has token {max(prompt_ids)}, and the model knows {config.vocab_size}: the "
        "tokenizer is not that of the model",
    )
    count = min(max_new_tokens, config.max_positions - (1 if answers else length))
    reader = model if cache else Rereading(model)
    return _generate(reader, list(prompt_ids), count, sampling, sample, eos_id)


def _generate(
    model: Generator,
    prompt_ids: list[int],
    count: int,
    sampling: Sampling,
    sample: int,
    eos_id: int | None,
) -> Iterator[int]:
    # One number per token, in an order of its own: the global generators are not touched.
    generator = stream(sampling.seed, sample)
    device = next(model.parameters()).device if isinstance(model, torch.nn.Module) else None
    cache, unread = model.new_cache(), prompt_ids
    for _ in range(count):
        logits_1V = model.step(torch.tensor([unread], device=device), cache)
        probabilities_V = next_token_probabilities(logits_1V[0], sampling)
        cumulative_V = probabilities_V.cumsum(0)
        threshold = generator.random() * float(cumulative_V[-1])
        token = int(torch.searchsorted(cumulative_V, threshold, right=True))
        if token == eos_id:
            return
        yield token
        unread = [token]
