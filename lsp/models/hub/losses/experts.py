"""Mixtures of experts whose idle experts have a gradient too, of zero.

The published loops leave out an expert that no token chose. Its parameters then get no gradient,
which DistributedDataParallel waits for, and under ZeRO-3 processes would gather the weights of
different experts at the same time. Called with no tokens at all, an expert costs nothing and its
gradient is zero.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lsp.models.hub.attention import QUERIES, is_documents

ROUTERS = ("SwitchTransformersTop1Router", "NllbMoeTop2Router")


def prepare(model: nn.Module) -> None:
    """Makes every mixture of experts in a model call all of its experts, in order.

    Experts whose weights are one tensor (Mixtral's) need nothing: their gradient is one tensor.

    Args:
        model: Of transformers; what it computes stays the same.
    """
    for module in model.modules():
        kind = type(module).__name__
        if kind == "SwitchTransformersExperts":
            module.forward = MethodType(_switch, module)
            _drop_by_place(module)
        elif kind == "NllbMoeExperts":
            module.forward = MethodType(_nllb, module)
            _drop_by_place(module)
        elif kind == "NllbMoeSparseMLP":
            module.register_forward_pre_hook(_tell_padding)
        elif kind in ROUTERS:
            module.classifier.__class__ = RouterProjection  # type: ignore[union-attr, assignment]


class RouterProjection(nn.Linear):
    """Computes in the precision of its input, and keeps its weights in their own.

    The published routers turn the weights themselves into single precision. Sharded weights are
    parts of a larger tensor, which alone is updated: they would never learn.
    """

    def to(self, *_: Any, **__: Any) -> RouterProjection:  # type: ignore[override]
        return self  # what moves a whole model does not come through here

    def forward(self, x_XD: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x_XD.dtype)
        return F.linear(x_XD, self.weight.to(x_XD.dtype), bias)


class PlacedDropout(nn.Dropout):
    """Drops of each token what it would of all: its mask does not depend on who else chose.

    Attributes:
        places: Numbers of the tokens that come, among all.
        total: How many all are.
    """

    places: torch.Tensor
    total: int

    def forward(self, x_XF: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x_XF
        kept_TF = torch.rand(self.total, x_XF.shape[-1], device=x_XF.device) >= self.p
        return x_XF * kept_TF[self.places].to(x_XF.dtype) / (1 - self.p)


def _drop_by_place(experts: nn.Module) -> None:
    for module in list(experts.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, PlacedDropout(child.p))


def _tell_padding(layer: Any, args: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
    """Gives a layer of experts what is padding, (B · L,), for the mask of its attention.

    The published router reads padding off what the last token sees, which in a packed row are the
    tokens of the last document.
    """
    hidden_BLD, mask = args
    if is_documents(mask):
        mask = (mask[:, 0, QUERIES, : hidden_BLD.shape[1]] == 0).flatten()
    elif mask is not None and mask.dim() == 4:
        mask = (mask[:, 0] < 0).all(dim=1).flatten()  # seen by nobody
    return hidden_BLD, mask


def _switch(
    self: Any, hidden_TD: torch.Tensor, chosen_T1E: torch.Tensor, weights_T1: torch.Tensor
) -> torch.Tensor:
    return _mix(self, hidden_TD, chosen_T1E, weights_T1)


def _nllb(
    self: Any, hidden_TD: torch.Tensor, chosen_TE: torch.Tensor, weights_TE: torch.Tensor
) -> torch.Tensor:
    # As transformers 5 reads the router's mask: it has ones and zeros, and is taken for numbers of
    # experts. So the second expert gets all first choices, and the first one all else.
    chosen_TEE = F.one_hot(chosen_TE, num_classes=self.num_experts)
    return _mix(self, hidden_TD, chosen_TEE, weights_TE, self.moe_token_dropout)


def _mix(
    experts: Any,
    hidden_TD: torch.Tensor,
    chosen_TKE: torch.Tensor,
    weights_TK: torch.Tensor,
    dropped: float = 0.0,
) -> torch.Tensor:
    """Adds up what experts say about the tokens that chose them: (T, D).

    Args:
        experts: The published module, whose members are called `expert_0`, `expert_1`, ….
        hidden_TD: (T, D) tokens of all rows.
        chosen_TKE: (T, K, E) not 0 where the k-th choice of a token is an expert.
        weights_TK: (T, K) of the choices.
        dropped: Share of what experts say that is dropped in training, and allowed for elsewhere.
    """
    out_TD = torch.zeros_like(hidden_TD)
    dropouts = [module for module in experts.modules() if isinstance(module, PlacedDropout)]
    for number in range(experts.num_experts):
        token, choice = torch.where(chosen_TKE[:, :, number])
        for dropout in dropouts:
            dropout.places, dropout.total = token, len(hidden_TD)
        said = experts[f"expert_{number}"](hidden_TD[token]) * weights_TK[token, choice, None]
        if dropped > 0:
            said = experts.token_dropout(said) if experts.training else said * (1 - dropped)
        out_TD = out_TD.index_add(0, token, said.to(hidden_TD.dtype))
    return out_TD
