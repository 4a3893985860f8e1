"""torch's optimizers over a model's parameters, matrices and the rest apart."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Adafactor, AdamW, Muon, Optimizer

from lsp.training.config import AdafactorConfig, AdamWConfig, MuonConfig, OptimizerConfig

PEAK = "peak_lr"
"""Key of a parameter group that holds the peak of its schedule."""


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Optimizers that together cover every trainable parameter once.

    Weight decay applies to tensors of two or more dimensions: norms and biases have a scale of
    their own that decay would only fight.

    Args:
        model: Whose parameters are trained.
        config: One of the optimizers' configurations.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if isinstance(config, MuonConfig):
        return _muon(named, config)
    groups = _groups([p for _, p in named], config.learning_rate, config.weight_decay)
    if isinstance(config, AdafactorConfig):
        return [
            Adafactor(
                groups,
                lr=config.learning_rate,
                beta2_decay=config.beta2_decay,
                d=config.clip_threshold,
            )
        ]
    if isinstance(config, AdamWConfig):
        return [_adamw(groups, config)]
    raise TypeError(f"no optimizer for {type(config).__name__}")


def set_learning_rate(groups: list[dict[str, Any]], fraction: float) -> float:
    """Sets every group to a fraction of its peak; returns the first group's learning rate."""
    for group in groups:
        group["lr"] = group[PEAK] * fraction
    return float(groups[0]["lr"])


def _adamw(groups: list[dict[str, Any]], config: AdamWConfig | MuonConfig) -> AdamW:
    return AdamW(groups, betas=(config.beta1, config.beta2), eps=config.epsilon)


def _groups(
    parameters: list[nn.Parameter], learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    matrices = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": members, "lr": learning_rate, PEAK: learning_rate, "weight_decay": decay}
        for members, decay in ((matrices, weight_decay), (rest, 0.0))
        if members
    ]
    return groups


NOT_HIDDEN = ("embedding", "word_emb", "lm_head", "crit.", "cls.", "_bias")
"""Parts of the names of what is looked up, predicts tokens, or is added for each head."""


def _muon(named: list[tuple[str, nn.Parameter]], config: MuonConfig) -> list[Optimizer]:
    """Muon orthogonalises updates of hidden matrices; embeddings and heads keep AdamW."""

    def hidden(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 2 and not any(part in name for part in NOT_HIDDEN)

    matrices = [p for name, p in named if hidden(name, p)]
    others = [p for name, p in named if not hidden(name, p)]
    muon = Muon(
        [{"params": matrices, PEAK: config.learning_rate}],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        ns_steps=config.ns_steps,
    )
    groups = _groups(others, config.adamw_learning_rate, config.weight_decay)
    return [muon, _adamw(groups, config)]
