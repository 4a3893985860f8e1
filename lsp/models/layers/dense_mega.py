"""Plain twins of Mega's averages and attention: position by position, and with (L × L) masks.

For tests, not for training. They share nothing with the fast versions but `documents`.
"""

from __future__ import annotations

import torch

from lsp.models.layers.chunks import documents


def recurrent_average(
    x_BLD: torch.Tensor,
    log_decay_SDN: torch.Tensor,
    weight_SDN: torch.Tensor,
    segment_ids_BL: torch.Tensor | None,
) -> torch.Tensor:
    """`moving_average` as a recurrence that begins anew with every document."""
    length = x_BLD.shape[1]
    if segment_ids_BL is None:
        segment_ids_BL = torch.ones_like(x_BLD[..., 0], dtype=torch.long)
    document_BL = documents(segment_ids_BL)
    x_BLD = x_BLD * (segment_ids_BL != 0)[..., None]
    out_BLD = torch.zeros_like(x_BLD)
    for direction, order in enumerate((range(length), reversed(range(length)))):
        if direction == len(log_decay_SDN):
            break
        decay_DN, weight_DN = log_decay_SDN[direction].exp(), weight_SDN[direction]
        state_BDN, before, places = None, None, []
        averages = [torch.empty(0)] * length
        for t in order:
            new_BDN = x_BLD[:, t, :, None].expand(-1, -1, decay_DN.shape[-1])
            if state_BDN is not None:
                same_B = document_BL[:, t] == document_BL[:, before]
                new_BDN = new_BDN + decay_DN * state_BDN * same_B[:, None, None]
            state_BDN, before = new_BDN, t
            places.append(t)
            averages[t] = (state_BDN * weight_DN).sum(-1)
        out_BLD = out_BLD + torch.stack(averages, dim=1)
    return out_BLD


def dense_group_attention(
    q_BLZ: torch.Tensor,
    k_BLZ: torch.Tensor,
    v_BLU: torch.Tensor,
    bias_E: torch.Tensor,
    *,
    chunk: int | None,
    causal: bool,
    activation: str,
    segment_ids_BL: torch.Tensor | None,
) -> torch.Tensor:
    """`group_attention` with (L × L) masks, its chunks counted from where documents begin."""
    rows, length, size = q_BLZ.shape
    if segment_ids_BL is None:
        segment_ids_BL = torch.ones(rows, length, dtype=torch.long)
    document_BL, index_L = documents(segment_ids_BL), torch.arange(length)
    same_BLL = document_BL[:, :, None] == document_BL[:, None, :]
    first_BL = same_BLL.int().argmax(-1)
    if chunk is not None:
        chunk_BL = (index_L - first_BL) // chunk
        same_BLL = same_BLL & (chunk_BL[:, :, None] == chunk_BL[:, None, :])
    real_BL = segment_ids_BL != 0
    seen_BLL = same_BLL & real_BL[:, None, :] & real_BL[:, :, None]
    if causal:
        seen_BLL = seen_BLL & (index_L[None, :] <= index_L[:, None])
    distance_LL = (index_L[None, :] - index_L[:, None] + (len(bias_E) - 1) // 2).clamp(
        0, len(bias_E) - 1
    )
    product_BLL = q_BLZ @ k_BLZ.transpose(1, 2)
    if activation == "softmax":
        scores_BLL = product_BLL / size**0.5 + bias_E[distance_LL]
        scores_BLL = scores_BLL.masked_fill(~seen_BLL & real_BL[:, :, None], -torch.inf)
        weights_BLL = scores_BLL.softmax(-1)
    else:
        count_BL1 = seen_BLL.sum(-1, keepdim=True).clamp(min=1)
        scores_BLL = product_BLL / count_BL1 + bias_E[distance_LL]
        if activation == "relu2":
            weights_BLL = scores_BLL.clamp(min=0) ** 2
        else:
            mean, deviation = scores_BLL.new_tensor([0.707107, 0.282095])
            weights_BLL = torch.distributions.Normal(mean, deviation).cdf(scores_BLL)
    return (weights_BLL * seen_BLL) @ v_BLU
