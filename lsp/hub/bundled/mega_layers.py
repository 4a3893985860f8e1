"""The layers of a Mega (2209.10655): moving averages, gated attention, feed-forward.

Averages go through a text block by block and attention through the queries, so memory is linear in
length, but for the attention weights of a text without chunks.

Letters of shapes: B rows, L positions here, S positions with those remembered, D width of the
stream, N averages of a feature, K positions of a block, Z width of queries and keys, U width of
values, Q queries of a block, W keys that they meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from .configuration_mega import MegaConfig

BLOCK = 64
"""Positions that are averaged, or queries that are attended, at a time."""


@dataclass
class LayerMemory:
    """What a layer remembers of a text.

    Attributes:
        state: (B, D, N) averages after it; None before it begins.
        keys: (B, S, Z) that the next token may see; None before it begins.
        values: (B, S, U) of them.
    """

    state: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> LayerMemory:
        """That of other rows, in their order."""
        tensors = (self.state, self.keys, self.values)
        return LayerMemory(*(x if x is None else x.index_select(0, rows) for x in tensors))


class MegaMemory:
    """What a model remembers of a text.

    Attributes:
        layers: Of each.
        length: Tokens so far, padding among them.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerMemory() for _ in range(layers)]
        self.length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens so far."""
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Goes on with other beams."""
        self.layers = [layer.select(beam_idx) for layer in self.layers]


@dataclass
class Text:
    """What all layers are told of a text.

    Attributes:
        visible: (B, S) False for padding.
        places: (B, S) of each token among those that are no padding, from 0.
    """

    visible: torch.Tensor
    places: torch.Tensor


class MegaDropout(nn.Module):
    """Drops numbers, or features of whole rows."""

    def __init__(self, probability: float, featurewise: bool) -> None:
        super().__init__()
        self.probability, self.featurewise = probability, featurewise

    def forward(self, x_BLX: torch.Tensor) -> torch.Tensor:
        """(B, L, X) to the same."""
        if self.featurewise:
            kept_BX = F.dropout(torch.ones_like(x_BLX[:, 0]), self.probability, self.training)
            return x_BLX * kept_BX[:, None]
        return F.dropout(x_BLX, self.probability, self.training)


class RootMeanSquareNorm(nn.Module):
    """Divides by the root of the mean square; multiplies by one number, or features."""

    def __init__(self, name: str, width: int, affine: bool) -> None:
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.ones(width)) if affine else None)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to the same."""
        x_BLD = x_BLD * torch.rsqrt(x_BLD.square().mean(-1, keepdim=True) + 1e-5)
        scale = getattr(self, self.name)
        return x_BLD if scale is None else x_BLD * scale


class MegaSequenceNorm(nn.Module):
    """Holds one of the norms, under its published name."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        width, affine = config.hidden_size, config.norm_affine
        self.norm: nn.Module
        if config.normalization_type == "layernorm":
            self.norm = nn.LayerNorm(width, 1e-5, elementwise_affine=affine)
        elif config.normalization_type == "rmsnorm":
            self.norm = RootMeanSquareNorm("weight", width, affine)
        elif config.normalization_type == "scalenorm":
            self.norm = RootMeanSquareNorm("scalar", 1, affine)
        else:
            raise ValueError(f"normalization_type={config.normalization_type} is not known here")

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to the same."""
        return self.norm(x_BLD)


class MegaMultiDimensionDampedEma(nn.Module):
    """Damped moving averages of every feature, and the feature itself."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        width, averages = config.hidden_size, config.ema_projection_size
        self.width, self.truncation = width, config.truncation
        both = 2 * width if config.bidirectional else width
        self.damping_factor = nn.Parameter(torch.zeros(both, averages, 1))
        self.decay_factor = nn.Parameter(torch.zeros(both, averages, 1))
        self.ema_expansion_matrix = nn.Parameter(torch.zeros(both, averages, 1))
        self.kernel_projection_matrix = nn.Parameter(torch.zeros(both, averages))
        self.residual_weight = nn.Parameter(torch.zeros(width))

    def coefficients(self, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each direction the logarithm of what an average keeps, and its weight: (D, N)."""
        share = torch.sigmoid(self.damping_factor[..., 0].to(dtype))
        lost = share * torch.sigmoid(self.decay_factor[..., 0].to(dtype))
        kept = torch.log1p(-lost.clamp(max=1 - 2**-23))
        weight = share * self.ema_expansion_matrix[..., 0].to(dtype)
        weight = weight * self.kernel_projection_matrix.to(dtype) / weight.shape[-1] ** 0.5
        return list(zip(kept.split(self.width), weight.split(self.width), strict=True))

    def forward(
        self, x_BLD: torch.Tensor, visible_BL: torch.Tensor, state_BDN: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The averages and the features, (B, L, D), and the averages after them, (B, D, N)."""
        wide_BLD = x_BLD.to(torch.promote_types(x_BLD.dtype, torch.float32))
        shown_BLD = wide_BLD * visible_BL[..., None]
        (kept_DN, weight_DN), *back = self.coefficients(wide_BLD.dtype)
        y_BLD, after_BDN = self.average(shown_BLD, kept_DN, weight_DN, state_BDN)
        if back:
            kept_DN, weight_DN = back[0]
            y_BLD = y_BLD + self.average(shown_BLD.flip(1), kept_DN, weight_DN, None)[0].flip(1)
        y_BLD = F.silu(y_BLD + wide_BLD * self.residual_weight)
        return y_BLD.to(x_BLD.dtype), after_BDN

    def average(
        self,
        x_BLD: torch.Tensor,
        kept_DN: torch.Tensor,
        weight_DN: torch.Tensor,
        state_BDN: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One direction, from an earlier state on."""
        y_BLD, after_BDN = recurrence(x_BLD, kept_DN, weight_DN, state_BDN)
        far = self.truncation
        if far is not None and far < x_BLD.shape[1]:
            faded_DN = weight_DN * torch.exp(kept_DN * far)
            past_BLD = F.pad(x_BLD[:, :-far], (0, 0, far, 0))
            y_BLD = y_BLD - recurrence(past_BLD, kept_DN, faded_DN, None)[0]
        return y_BLD, after_BDN


def recurrence(
    x_BLD: torch.Tensor,
    kept_DN: torch.Tensor,
    weight_DN: torch.Tensor,
    state_BDN: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of weights times h_t = exp(kept) h_(t-1) + x_t, and the last h."""
    if state_BDN is None:
        state_BDN = x_BLD.new_zeros(x_BLD.shape[0], *kept_DN.shape)
    blocks = []
    for x_BKD in x_BLD.split(BLOCK, dim=1):
        size = x_BKD.shape[1]
        step_X = torch.arange(size + 1, device=x_BLD.device, dtype=x_BLD.dtype)
        power_DNX = torch.exp(kept_DN[..., None] * step_X)
        kernel_DK = torch.einsum("dn,dnk->dk", weight_DN, power_DNX[..., :size])
        # Row t has what distances t, t - 1, …, 0 count, and nothing for later positions.
        within_DKK = F.pad(kernel_DK, (size - 1, 0)).unfold(-1, size, 1).flip(-1)
        y_BKD = torch.einsum("dts,bsd->btd", within_DKK, x_BKD)
        y_BKD = y_BKD + torch.einsum("dn,dnt,bdn->btd", weight_DN, power_DNX[..., 1:], state_BDN)
        left_DNK = power_DNX[..., :size].flip(-1)
        own_BDN = torch.einsum("dnk,bkd->bdn", left_DNK, x_BKD)
        state_BDN = own_BDN + power_DNX[..., size] * state_BDN
        blocks.append(y_BKD)
    return torch.cat(blocks, dim=1), state_BDN


class MegaRotaryRelativePositionalBias(nn.Module):
    """What two learned vectors, turned by a query's and a key's place, are to each other."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        size = config.shared_representation_size
        self.alpha = nn.Parameter(torch.zeros(1, size))
        self.b_param = nn.Parameter(torch.zeros(1, size))
        self.register_buffer("_float_tensor", torch.zeros(1))  # published files have it

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """The biases of distances from query to key, of any shape."""
        dtype = torch.promote_types(self.alpha.dtype, torch.float32)
        (a_Z, c_Z), (b_Z, d_Z) = (x[0].to(dtype).chunk(2) for x in (self.alpha, self.b_param))
        half = len(a_Z)
        rate_Z = torch.arange(half, device=a_Z.device, dtype=dtype) * (-math.log(10000) / half)
        reach = int(distance.abs().max())
        place_E = torch.arange(-reach, reach + 1, device=a_Z.device, dtype=dtype)
        angle_EZ = place_E[:, None] * torch.exp(rate_Z)
        bias_E = angle_EZ.cos() @ (a_Z * b_Z + c_Z * d_Z) - angle_EZ.sin() @ (a_Z * d_Z - c_Z * b_Z)
        return bias_E[distance + reach]


class MegaSimpleRelativePositionalBias(nn.Module):
    """A learned number for each distance."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.middle = config.known_distance
        self.rel_pos_bias = nn.Parameter(torch.zeros(2 * config.max_positions - 1))

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """The biases of distances from query to key, of any shape."""
        return self.rel_pos_bias[(distance + self.middle).clamp(0, 2 * self.middle)]


class MegaMovingAverageGatedAttention(nn.Module):
    """Averages, attention of what they give, and gates."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.config = config
        width, size = config.hidden_size, config.shared_representation_size
        inner, featurewise = config.intermediate_size, config.use_feature_dropout
        self.activation = ACT2FN[config.activation]
        self.dropout = MegaDropout(config.dropout_prob, featurewise)
        self.hidden_dropout = MegaDropout(config.hidden_dropout_prob, featurewise)
        self.attention_dropout = MegaDropout(config.attention_probs_dropout_prob, False)
        self.norm = MegaSequenceNorm(config)
        self.ema_gate = MegaMultiDimensionDampedEma(config)
        self.v_proj = nn.Linear(width, inner)
        self.mx_proj = nn.Linear(width, size + inner + 2 * width)
        self.h_proj = nn.Linear(inner, width)
        self.qk_weight = nn.Parameter(torch.zeros(2, size))
        self.qk_bias = nn.Parameter(torch.zeros(2, size))
        rotary = config.relative_positional_bias == "rotary"
        kind = MegaRotaryRelativePositionalBias if rotary else MegaSimpleRelativePositionalBias
        self.rel_pos_bias = kind(config)

    def forward(
        self, x_BLD: torch.Tensor, text: Text, memory: LayerMemory | None
    ) -> tuple[torch.Tensor, LayerMemory]:
        """(B, L, D) to the same, and what to remember."""
        config, length = self.config, x_BLD.shape[1]
        memory = memory or LayerMemory()
        normed_BLD = self.norm(x_BLD) if config.normalize_before_mega else x_BLD
        v_BSU = self.hidden_dropout(self.activation(self.v_proj(normed_BLD)))
        y_BLD, state = self.ema_gate(normed_BLD, text.visible[:, -length:], memory.state)
        update_BLD, both_BLX, proposal_BLD = self.mx_proj(self.dropout(y_BLD)).split(
            [
                config.hidden_size,
                config.shared_representation_size + config.intermediate_size,
                config.hidden_size,
            ],
            dim=-1,
        )
        shared_BLZ, gate_BLU = F.silu(both_BLX).split(
            [config.shared_representation_size, config.intermediate_size], dim=-1
        )
        q_BLZ, k_BSZ = (
            shared_BLZ * w + b for w, b in zip(self.qk_weight, self.qk_bias, strict=True)
        )
        if memory.keys is not None and memory.values is not None:
            k_BSZ = torch.cat([memory.keys, k_BSZ], dim=1)
            v_BSU = torch.cat([memory.values, v_BSU], dim=1)
        mixed_BLU = self.attend(q_BLZ, k_BSZ, v_BSU, text)
        new_BLD = self.activation(proposal_BLD + self.h_proj(mixed_BLU * gate_BLU))
        move_BLD = torch.sigmoid(update_BLD) * (self.dropout(new_BLD) - x_BLD)
        out_BLD = x_BLD + move_BLD
        if not config.normalize_before_mega:
            out_BLD = self.norm(out_BLD)
        if config.use_chunking:  # no token sees further back
            k_BSZ, v_BSU = k_BSZ[:, -config.chunk_size :], v_BSU[:, -config.chunk_size :]
        return out_BLD, LayerMemory(state, k_BSZ, v_BSU)

    def attend(
        self, q_BLZ: torch.Tensor, k_BSZ: torch.Tensor, v_BSU: torch.Tensor, text: Text
    ) -> torch.Tensor:
        """Values of a token's chunk, or of its text: (B, L, U)."""
        config, outs = self.config, []
        length, total = q_BLZ.shape[1], k_BSZ.shape[1]
        visible_BS, places_BS = text.visible[:, -total:], text.places[:, -total:]
        size = config.chunk_size if config.use_chunking else None
        for start in range(total - length, total, BLOCK):
            stop = min(total, start + BLOCK)
            first, last = 0, total
            if size is not None:
                first, last = max(0, start - size + 1), min(total, stop + size - 1)
            if config.is_decoder:
                last = stop
            q_BQZ = q_BLZ[:, start - (total - length) : stop - (total - length)]
            place_BQ1, place_B1W = places_BS[:, start:stop, None], places_BS[:, None, first:last]
            seen_BQW = visible_BS[:, None, first:last] & visible_BS[:, start:stop, None]
            if size is not None:
                seen_BQW = seen_BQW & (place_BQ1 // size == place_B1W // size)
            if config.is_decoder:
                seen_BQW = seen_BQW & (place_B1W <= place_BQ1)
            scores_BQW = q_BQZ @ k_BSZ[:, first:last].transpose(1, 2)
            bias_BQW = self.rel_pos_bias(place_B1W - place_BQ1).to(scores_BQW.dtype)
            weights_BQW = self.weigh(scores_BQW, bias_BQW, seen_BQW)
            outs.append(self.attention_dropout(weights_BQW) @ v_BSU[:, first:last])
        return torch.cat(outs, dim=1)

    def weigh(
        self, scores_BQW: torch.Tensor, bias_BQW: torch.Tensor, seen_BQW: torch.Tensor
    ) -> torch.Tensor:
        """Attention weights; none where nothing is seen."""
        config = self.config
        if config.attention_activation == "softmax":
            scores_BQW = scores_BQW * config.shared_representation_size**-0.5 + bias_BQW
            lowest = torch.finfo(scores_BQW.dtype).min
            weights_BQW = scores_BQW.masked_fill(~seen_BQW, lowest).softmax(-1)
        else:
            count_BQ1 = seen_BQW.sum(-1, keepdim=True).clamp(min=1)
            weights_BQW = ACT2FN[config.attention_activation](scores_BQW / count_BQ1 + bias_BQW)
        return weights_BQW * seen_BQW


class MegaNormalizedFeedForwardNetwork(nn.Module):
    """Two linear layers, and a norm before them or after the sum."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.config, featurewise = config, config.use_feature_dropout
        self.activation = ACT2FN[config.activation]
        self.dropout = MegaDropout(config.dropout_prob, featurewise)
        self.hidden_dropout = MegaDropout(config.nffn_activation_dropout_prob, featurewise)
        self.norm = MegaSequenceNorm(config)
        self.fc1 = nn.Linear(config.hidden_size, config.nffn_hidden_size)
        self.fc2 = nn.Linear(config.nffn_hidden_size, config.hidden_size)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to the same."""
        first = self.config.normalize_before_ffn
        inner = self.activation(self.fc1(self.norm(x_BLD) if first else x_BLD))
        out_BLD = self.dropout(self.fc2(self.hidden_dropout(inner))) + x_BLD
        return out_BLD if first else self.norm(out_BLD)


class MegaBlock(nn.Module):
    """A layer."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.mega_layer = MegaMovingAverageGatedAttention(config)
        self.nffn = MegaNormalizedFeedForwardNetwork(config) if config.use_normalized_ffn else None

    def forward(self, x_BLD: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, LayerMemory]:
        """(B, L, D) to the same, and what to remember."""
        x_BLD, memory = self.mega_layer(x_BLD, *arguments)
        return x_BLD if self.nffn is None else self.nffn(x_BLD), memory
