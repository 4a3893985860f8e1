"""What global tokens see: all of their document (Longformer, 2004.05150, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lsp.models.layers.chunks import documents
from lsp.models.layers.dropout import derive_seed, seeded_dropout


def global_attention(
    out_BNLH: torch.Tensor,
    q_BNLH: torch.Tensor,
    k_BNLH: torch.Tensor,
    v_BNLH: torch.Tensor,
    *,
    global_BL: torch.Tensor,
    segment_ids_BL: torch.Tensor | None = None,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
) -> torch.Tensor:
    """Puts the attention of global tokens in the place of what a window gave them.

    Args:
        out_BNLH: (B, N, L, H) attention of all tokens to those around them.
        q_BNLH: (B, N, L, H) queries, those of global tokens from a projection of their own.
        k_BNLH: (B, N, L, H) keys for global tokens.
        v_BNLH: (B, N, L, H) values for global tokens.
        global_BL: (B, L) true for global tokens.
        segment_ids_BL: (B, L) 0 for padding, 1.. for documents, which never see each other.
        dropout: Probability of dropping an attention weight.
        dropout_seed: Required where dropout > 0: the same seed drops the same weights.

    Returns:
        (B, N, L, H).
    """
    rows = []
    document_BL = None if segment_ids_BL is None else documents(segment_ids_BL)
    # Unbound, not indexed: the gradient of an indexed row would have the size of all of them.
    whole = zip(*(x_BNLH.unbind() for x_BNLH in (out_BNLH, q_BNLH, k_BNLH, v_BNLH)), strict=True)
    for row, (out_NLH, q_NLH, k_NLH, v_NLH) in enumerate(whole):
        index_G = global_BL[row].nonzero()[:, 0]
        if len(index_G) == 0:
            rows.append(out_NLH)
            continue
        bias_GL = None
        if document_BL is not None and segment_ids_BL is not None:
            document_L = document_BL[row]
            seen_GL = (document_L[index_G, None] == document_L) & (segment_ids_BL[row] != 0)
            bias_GL = torch.zeros(seen_GL.shape, dtype=q_BNLH.dtype, device=q_BNLH.device)
            bias_GL = bias_GL.masked_fill(~seen_GL, float("-inf"))
        q_NGH = q_NLH[:, index_G]
        if dropout and dropout_seed is not None:
            scores_NGL = q_NGH @ k_NLH.transpose(-1, -2) * q_NGH.shape[-1] ** -0.5
            weights_NGL = (scores_NGL if bias_GL is None else scores_NGL + bias_GL).softmax(-1)
            weights_NGL = seeded_dropout(weights_NGL, dropout, derive_seed(dropout_seed, row))
            seen_NGH = weights_NGL @ v_NLH
        else:
            seen_NGH = F.scaled_dot_product_attention(q_NGH, k_NLH, v_NLH, attn_mask=bias_GL)
        rows.append(out_NLH.index_copy(1, index_G, seen_NGH.to(out_NLH.dtype)))
    return torch.stack(rows)
