"""Weights that an objective leaves out: images' where there is text alone, poolers', queries'.

They would wait for a gradient that never comes, and with them every process that sums gradients.
Which they are is not written down anywhere: it is seen in a tiny backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lsp.models.hub import lengths
from lsp.models.hub.example import example

LENGTH = 16
SEED = 0


def freeze_unused(model: Any) -> tuple[str, ...]:
    """Takes the weights that no loss of a model depends on out of training.

    Gradients are let go of one by one, so that hardly more than the weights has to fit.

    Args:
        model: A `HubModel`, whole, on the host.

    Returns:
        Their names.
    """
    config, least = model.config, lengths.shortest(model.config)
    length = least * -(-min(LENGTH, config.max_positions) // least)
    batch = example(config.objective, length, config.vocab_size)
    with _seen(model) as seen, torch.random.fork_rng(devices=[]):
        model.begin_micro_batch(SEED)
        model(**batch)[0].backward()
    frozen = [(name, p) for name, p in model.named_parameters() if p not in seen]
    for _, parameter in frozen:
        parameter.requires_grad = False
    return tuple(name for name, _ in frozen)


@contextmanager
def _seen(model: nn.Module) -> Iterator[set[nn.Parameter]]:
    """The parameters that get a gradient for as long as it lasts; afterwards none has one."""
    seen: set[nn.Parameter] = set()

    def note(parameter: torch.Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        seen.add(parameter)
        parameter.grad = None

    hooks = [
        parameter.register_post_accumulate_grad_hook(note)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    training = model.training
    model.train()
    try:
        yield seen
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
