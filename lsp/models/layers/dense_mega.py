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
