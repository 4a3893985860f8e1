"""The parts of a Mega layer: moving averages, gated attention and feed-forward (2209.10655).

Module names are those of the published weights. Letters of shapes are in `lsp/core/batch.py`; S
stands for the directions of averages, N for the averages of a feature, Z for the width of queries
and keys, U for that of values, E for distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from lsp.models.activations import activation
from lsp.models.layers.chunked_attention import compute_dtype
from lsp.models.layers.chunks import documents
from lsp.models.layers.dropout import derive_seed, seeded_dropout
from lsp.models.layers.group_attention import Groups, group_attention
from lsp.models.layers.moving_average import Layout, moving_average
from lsp.models.layers.sequential import Block
from lsp.models.layers.staged import StagedBlock, Step
from lsp.models.layers.tiling import tile_spans
from lsp.models.mega_config import MegaConfig
from lsp.models.memory import MemoryConfig

NORM_EPSILON = 1e-5
WAVELENGTH = 10000.0
DECAYED = 1 - 2**-23
"""The most of an average that one position replaces, in fp32: its logarithm is finite."""


@dataclass(frozen=True)
class Memo:
    """What a block is told for one forward pass.

    Attributes:
        segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
        layout: Of the documents, for averages.
        groups: For attention.
        dropout_seed: Of every dropout mask in the block; None drops nothing.
    """

    segment_ids: torch.Tensor | None
    layout: Layout | None
    groups: Groups
    dropout_seed: int | None


def named_activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """One of `mega_config.ACTIVATIONS`."""
    return activation("gelu_new" if name == "gelu_accurate" else name)


class ScaleNorm(nn.Module):
    """Divides by the root of the mean square, and multiplies by one number (1910.05895)."""

    scalar: torch.Tensor | None

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.register_parameter("scalar", nn.Parameter(torch.ones(1)) if affine else None)

    def forward(self, x_BKD: torch.Tensor) -> torch.Tensor:
        return _by_root_mean_square(x_BKD, self.scalar)


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, and multiplies features (1910.07467).

    The published class forgets to divide; this is what it is called.
    """

    weight: torch.Tensor | None

    def __init__(self, width: int, affine: bool) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(width)) if affine else None)

    def forward(self, x_BKD: torch.Tensor) -> torch.Tensor:
        return _by_root_mean_square(x_BKD, self.weight)


def _by_root_mean_square(x_BKD: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    x_BKD = x_BKD * torch.rsqrt(x_BKD.square().mean(-1, keepdim=True) + NORM_EPSILON)
    return x_BKD if scale is None else x_BKD * scale


class SequenceNorm(nn.Module):
    """Holds one of the norms, under its published name."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        width, affine = config.hidden_size, config.norm_affine
        self.norm: nn.Module
        if config.normalization_type == "layernorm":
            self.norm = nn.LayerNorm(width, NORM_EPSILON, elementwise_affine=affine)
        elif config.normalization_type == "rmsnorm":
            self.norm = RMSNorm(width, affine)
        else:
            self.norm = ScaleNorm(affine)

    def forward(self, x_BKD: torch.Tensor) -> torch.Tensor:
        normed_BKD: torch.Tensor = self.norm(x_BKD)
        return normed_BKD


class MultiDimensionDampedEma(nn.Module):
    """Damped moving averages of every feature, and the feature itself (section 3.1)."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        width, averages = config.hidden_size, config.ema_projection_size
        self.directions = 2 if config.bidirectional else 1
        self.truncation = config.truncation
        both = self.directions * width
        self.damping_factor = nn.Parameter(torch.empty(both, averages, 1))
        self.decay_factor = nn.Parameter(torch.empty(both, averages, 1))
        self.ema_expansion_matrix = nn.Parameter(torch.empty(both, averages, 1))
        self.kernel_projection_matrix = nn.Parameter(torch.empty(both, averages))
        self.residual_weight = nn.Parameter(torch.empty(width))

    def coefficients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logarithms of what each average keeps, and its weights: (S, D, N) each.

        In equation 5, with p for alpha and a for alpha * delta: what is kept is 1 - a, and the
        weight is the product of p, the expansion and the projection.
        """
        dtype = compute_dtype(self.damping_factor)
        damping, decay, expansion = (
            x[..., 0].to(dtype)
            for x in (self.damping_factor, self.decay_factor, self.ema_expansion_matrix)
        )
        share = torch.sigmoid(damping)
        kept = torch.log1p(-(share * torch.sigmoid(decay)).clamp(max=DECAYED))
        weight = share * expansion * self.kernel_projection_matrix.to(dtype)
        weight = weight / math.sqrt(weight.shape[-1])
        shape = (self.directions, -1)
        return kept.unflatten(0, shape), weight.unflatten(0, shape)

    def forward(
        self, x_BLD: torch.Tensor, segment_ids_BL: torch.Tensor | None, layout: Layout | None
    ) -> torch.Tensor:
        """The averages of each document and the features: (B, L, D)."""
        # Sums over thousands of positions need more than half precision.
        with torch.autocast(x_BLD.device.type, enabled=False):
            wide_BLD = x_BLD.to(compute_dtype(x_BLD))
            kept_SDN, weight_SDN = self.coefficients()
            y_BLD = moving_average(wide_BLD, kept_SDN, weight_SDN, layout)
            if self.truncation is not None and self.truncation < x_BLD.shape[1]:
                faded_SDN = weight_SDN * torch.exp(kept_SDN * self.truncation)
                for direction in range(self.directions):
                    far_BLD = shifted(wide_BLD, segment_ids_BL, self.truncation, direction)
                    only = torch.zeros_like(faded_SDN)
                    only[direction] = faded_SDN[direction]
                    y_BLD = y_BLD - moving_average(far_BLD, kept_SDN, only, layout)
            y_BLD = F.silu(y_BLD + wide_BLD * self.residual_weight)
        return y_BLD.to(x_BLD.dtype)


def shifted(
    x_BLD: torch.Tensor, segment_ids_BL: torch.Tensor | None, distance: int, direction: int
) -> torch.Tensor:
    """What is so far before (direction 0) or after (1) each position, in its own document."""
    if segment_ids_BL is not None:
        x_BLD = x_BLD * (segment_ids_BL != 0)[..., None]
    near, far = slice(distance, None), slice(None, -distance)
    if direction:
        near, far = far, near
    source_BKD = x_BLD[:, far]
    if segment_ids_BL is not None:
        document_BL = documents(segment_ids_BL)
        source_BKD = source_BKD * (document_BL[:, far] == document_BL[:, near])[..., None]
    edge = (0, distance) if direction else (distance, 0)
    return F.pad(source_BKD, (0, 0, *edge))


class RotaryBias(nn.Module):
    """What two learned vectors, turned by a query's and a key's place, are to each other."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, config.shared_representation_size))
        self.b_param = nn.Parameter(torch.empty(1, config.shared_representation_size))

    def forward(self, reach: int) -> torch.Tensor:
        """Biases of the distances -reach..reach from query to key: (2 * reach + 1,)."""
        # The product of turned vectors depends on the difference of the angles alone.
        dtype, device = compute_dtype(self.alpha), self.alpha.device
        (a_Z, c_Z), (b_Z, d_Z) = (x[0].to(dtype).chunk(2) for x in (self.alpha, self.b_param))
        half = len(a_Z)
        rate_Z = torch.exp(
            torch.arange(half, dtype=dtype, device=device) * (-math.log(WAVELENGTH) / half)
        )
        angle_EZ = torch.arange(reach + 1, dtype=dtype, device=device)[:, None] * rate_Z
        even_E = angle_EZ.cos() @ (a_Z * b_Z + c_Z * d_Z)
        odd_E = angle_EZ.sin() @ (a_Z * d_Z - c_Z * b_Z)
        return torch.cat([(even_E + odd_E)[1:].flip(0), even_E - odd_E])


class SimpleBias(nn.Module):
    """A learned number for each distance."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.middle = config.known_distance
        self.rel_pos_bias = nn.Parameter(torch.empty(2 * config.max_positions - 1))

    def forward(self, reach: int) -> torch.Tensor:
        """Biases of the distances -reach..reach from query to key: (2 * reach + 1,)."""
        bias_E: torch.Tensor = self.rel_pos_bias[self.middle - reach : self.middle + reach + 1]
        return bias_E


class _Seeded(nn.Module):
    """What the parts of a layer have in common."""

    config: MegaConfig

    def drop(
        self, x_BKX: torch.Tensor, probability: float, memo: Memo, key: int, tile: slice
    ) -> torch.Tensor:
        """Dropout of numbers, or of features of whole rows."""
        if memo.dropout_seed is None:
            return x_BKX
        if not self.config.use_feature_dropout:
            seed = derive_seed(memo.dropout_seed, key, tile.start)
            return seeded_dropout(x_BKX, probability, seed)
        ones_B1X = torch.ones_like(x_BKX[:, :1])
        return x_BKX * seeded_dropout(ones_B1X, probability, derive_seed(memo.dropout_seed, key))


class GatedAttention(StagedBlock, _Seeded):
    """Averages, attention of what they give, and gates (sections 3.2 and 3.3)."""

    steps: ClassVar[tuple[Step, ...]] = (
        Step("before", ("x",), ("normed", "value")),
        Step("average", ("normed",), ("averaged",), mixes=True),
        Step("project", ("averaged",), ("query", "key", "gate", "update", "proposal")),
        Step("attend", ("query", "key", "value"), ("mixed",), mixes=True),
        Step("after", ("x", "mixed", "gate", "update", "proposal"), ("y",)),
    )

    def __init__(self, config: MegaConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        width, size = config.hidden_size, config.shared_representation_size
        self.activation = named_activation(config.activation)
        self.norm = SequenceNorm(config)
        self.ema_gate = MultiDimensionDampedEma(config)
        self.v_proj = nn.Linear(width, config.intermediate_size)
        self.mx_proj = nn.Linear(width, size + config.intermediate_size + 2 * width)
        self.h_proj = nn.Linear(config.intermediate_size, width)
        self.qk_weight = nn.Parameter(torch.empty(2, size))
        self.qk_bias = nn.Parameter(torch.empty(2, size))
        bias = RotaryBias if config.relative_positional_bias == "rotary" else SimpleBias
        self.rel_pos_bias = bias(config)

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        """Runs of positions whose projections are within the budget of a tile."""
        wide = x_BLD.shape[0] * x_BLD.shape[1] * self.mx_proj.out_features * x_BLD.element_size()
        return tile_spans(x_BLD.shape[1], self.memory.tiles_for(wide, x_BLD.device.type))

    def before(self, x_BKD: torch.Tensor, memo: Memo, tile: slice) -> tuple[torch.Tensor, ...]:
        """What averages run over, and values."""
        normed_BKD = self.norm(x_BKD) if self.config.normalize_before_mega else x_BKD.clone()
        v_BKU = self.activation(self.v_proj(normed_BKD))
        return normed_BKD, self.drop(v_BKU, self.config.hidden_dropout_prob, memo, 0, tile)

    def average(self, x_BLD: torch.Tensor, memo: Memo, tile: slice) -> tuple[torch.Tensor]:
        """Equations 3 to 6."""
        return (self.ema_gate(x_BLD, memo.segment_ids, memo.layout),)

    def project(self, y_BKD: torch.Tensor, memo: Memo, tile: slice) -> tuple[torch.Tensor, ...]:
        """Equations 7 to 9 and 12 to 13, but for what attention adds."""
        config = self.config
        y_BKD = self.drop(y_BKD, config.dropout_prob, memo, 1, tile)
        width, size = config.hidden_size, config.shared_representation_size
        update_BKD, shared_BKZ, gate_BKU, proposal_BKD = self.mx_proj(y_BKD).split(
            [width, size, config.intermediate_size, width], dim=-1
        )
        # Apart from each other: the one is kept for the backward pass, the other need not be.
        shared_BKZ, gate_BKU = F.silu(shared_BKZ), F.silu(gate_BKU)
        q_BKZ, k_BKZ = (
            shared_BKZ * w + b for w, b in zip(self.qk_weight, self.qk_bias, strict=True)
        )
        return q_BKZ, k_BKZ, gate_BKU, torch.sigmoid(update_BKD), proposal_BKD

    def attend(
        self,
        q_BLZ: torch.Tensor,
        k_BLZ: torch.Tensor,
        v_BLU: torch.Tensor,
        memo: Memo,
        tile: slice,
    ) -> tuple[torch.Tensor]:
        """Equations 10 and 11."""
        config, groups, length = self.config, memo.groups, q_BLZ.shape[1]
        longest = min(length, config.chunk_size) if config.use_chunking else length
        seed = None if memo.dropout_seed is None else derive_seed(memo.dropout_seed, 2)
        dtype = v_BLU.dtype
        mixed_BLU = group_attention(
            q_BLZ.to(dtype),
            k_BLZ.to(dtype),
            v_BLU,
            self.rel_pos_bias(longest - 1),
            groups,
            activation=config.attention_activation,
            dropout=config.attention_probs_dropout_prob,
            dropout_seed=seed,
        )
        return (mixed_BLU,)

    def after(
        self,
        x_BKD: torch.Tensor,
        mixed_BKU: torch.Tensor,
        gate_BKU: torch.Tensor,
        update_BKD: torch.Tensor,
        proposal_BKD: torch.Tensor,
        memo: Memo,
        tile: slice,
    ) -> tuple[torch.Tensor]:
        """Equations 14 and 15: the stream moves towards what is proposed."""
        new_BKD = self.activation(proposal_BKD + self.h_proj(mixed_BKU * gate_BKU))
        new_BKD = self.drop(new_BKD, self.config.dropout_prob, memo, 3, tile)
        out_BKD = torch.addcmul(x_BKD, update_BKD, new_BKD - x_BKD)
        return (out_BKD if self.config.normalize_before_mega else self.norm(out_BKD),)


class NormalizedFeedForward(Block, _Seeded):
    """Two linear layers, and a norm before them or after the sum."""

    mixes = False

    def __init__(self, config: MegaConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.config, self.memory = config, memory
        self.activation = named_activation(config.activation)
        self.norm = SequenceNorm(config)
        self.fc1 = nn.Linear(config.hidden_size, config.nffn_hidden_size)
        self.fc2 = nn.Linear(config.nffn_hidden_size, config.hidden_size)

    def tiles(self, x_BLD: torch.Tensor) -> list[slice]:
        tiles = self.memory.feed_forward_tiles
        if tiles == 0:
            width = max(self.config.nffn_hidden_size, self.config.hidden_size)
            wide = x_BLD.shape[0] * x_BLD.shape[1] * width * x_BLD.element_size()
            tiles = self.memory.tiles_for(wide, x_BLD.device.type)
        return tile_spans(x_BLD.shape[1], tiles)

    def after(
        self, mixed_BKE: torch.Tensor | None, x_BKD: torch.Tensor, memo: Memo, tile: slice
    ) -> torch.Tensor:
        config, first = self.config, self.config.normalize_before_ffn
        inner_BKD = self.norm(x_BKD) if first else x_BKD
        inner_BKF = self.activation(self.fc1(inner_BKD))
        inner_BKF = self.drop(inner_BKF, config.nffn_activation_dropout_prob, memo, 0, tile)
        out_BKD = self.drop(self.fc2(inner_BKF), config.dropout_prob, memo, 1, tile) + x_BKD
        return out_BKD if first else self.norm(out_BKD)


class MegaLayer(nn.Module):
    """A layer."""

    def __init__(self, config: MegaConfig, memory: MemoryConfig) -> None:
        super().__init__()
        self.mega_layer = GatedAttention(config, memory)
        self.nffn = NormalizedFeedForward(config, memory) if config.use_normalized_ffn else None
