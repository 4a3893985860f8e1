"""Encoders whose attention goes by blocks: each document gets a row of its own.

BigBird's blocks (2007.14062) are given the documents within attention, as rows as long as the
packed one, since which blocks are chosen at random depends on that. Of Longformer (2004.05150) and
LED, LongT5 (2112.07916) and PEGASUS-X (2208.04347) the whole encoder is, once, with rows as long as
the longest document. Neither takes more than rows of one document each would.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.errors import UserError
from lsp.models.hub.documents import Documents, replace_forward


def prepare_big_bird(model: nn.Module, documents: Documents) -> None:
    """BigBird's blocks, in its encoder and that of BigBird-Pegasus.

    Rows that are too short for them are refused: the published models would change to attention of
    all tokens to all for good.
    """
    from transformers.models.big_bird.modeling_big_bird import (
        BigBirdBlockSparseAttention,
        BigBirdModel,
    )
    from transformers.models.bigbird_pegasus.modeling_bigbird_pegasus import (
        BigBirdPegasusBlockSparseAttention,
        BigBirdPegasusEncoder,
    )

    for module in model.modules():
        if isinstance(module, BigBirdModel | BigBirdPegasusEncoder):
            module.set_attention_type = _Kept(module)  # type: ignore[method-assign,assignment]
        if isinstance(module, BigBirdBlockSparseAttention | BigBirdPegasusBlockSparseAttention):
            replace_forward(module, _by_blocks, documents)


class _Kept:
    """In the place of what would change the kind of attention."""

    def __init__(self, module: Any) -> None:
        self.config = module.config

    def __call__(self, kind: str) -> None:
        config = self.config
        least = (5 + 2 * config.num_random_blocks) * config.block_size + 1
        raise UserError(
            f"rows of fewer than {least} tokens are too short for the blocks of "
            f"model_type={config.model_type} (num_random_blocks={config.num_random_blocks}, "
            f"block_size={config.block_size}): use longer rows, or smaller blocks"
        )


def _by_blocks(
    module: Any, documents: Documents, hidden_BKD: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    from transformers.models.big_bird.modeling_big_bird import BigBirdModel

    own = documents.lengthened(hidden_BKD.shape)
    if own is None:
        published: tuple[torch.Tensor, None] = type(module).forward(
            module, hidden_BKD, *args, **kwargs
        )
        return published
    length, block = hidden_BKD.shape[1], module.block_size
    heads, size = module.num_attention_heads, module.attention_head_size
    qkv = [
        project(hidden_BKD).unflatten(-1, (heads, size))
        for project in (module.query, module.key, module.value)
    ]

    def attended(*given: torch.Tensor) -> torch.Tensor:
        *qkv_SKNH, real_SK = given
        real_SK = real_SK.to(qkv_SKNH[0].dtype)
        blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
            real_SK, block
        )
        out_SKNH: torch.Tensor = module.bigbird_block_sparse_attention(
            *(x.transpose(1, 2) for x in qkv_SKNH),
            band,
            rows,
            columns,
            blocked,
            blocked,
            heads,
            module.num_random_blocks,
            size,
            block,
            block,
            len(real_SK),
            length,
            length,
            seed=module.seed,
            plan_from_length=None,
            plan_num_rand_blocks=None,
        )[0]
        return out_SKNH.reshape(len(real_SK), length, heads, size)

    return own.each(attended, qkv, lambda _: length).flatten(2), None


def prepare_apart(model: nn.Module, documents: Documents) -> None:
    """Has an encoder read rows of one document each."""
    body: Any = model
    replace_forward(body.base_model, _apart, documents)


def _apart(
    body: Any,
    documents: Documents,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    published = type(body).forward
    given = {} if position_ids is None else {"position_ids": position_ids}
    windows = getattr(body.config, "attention_window", 1)
    multiple = windows if isinstance(windows, int) else max(windows)
    whole = documents.alone and multiple == 1
    if input_ids is None or not documents.fits(input_ids.shape) or whole:
        return published(
            body, input_ids=input_ids, attention_mask=attention_mask, **given, **kwargs
        )
    rows = documents.places
    # Where a length does not fit, published windows embed padding: a collective of weights that are
    # sharded, in which processes whose lengths fit would not take part.
    rows = F.pad(rows, (0, -rows.shape[1] % multiple), value=-1)
    given = {name: _gathered(x_BL, rows) for name, x_BL in given.items()}
    real_SK = (rows >= 0).long()
    ids_SK = _gathered(input_ids, rows)
    with documents.set_aside():
        output = published(body, input_ids=ids_SK, attention_mask=real_SK, **given, **kwargs)
    hidden_SKD = output.last_hidden_state
    hidden_TD = hidden_SKD.new_zeros(input_ids.numel(), hidden_SKD.shape[-1])
    hidden_TD = hidden_TD.index_copy(0, rows[rows >= 0], hidden_SKD[rows >= 0])
    output.last_hidden_state = hidden_TD.unflatten(0, input_ids.shape)
    return output


def _gathered(x_BL: torch.Tensor, places_SK: torch.Tensor) -> torch.Tensor:
    """Tokens by their places, and those of place 0 where there is none, which nobody sees."""
    found: torch.Tensor = x_BL.flatten()[places_SK.clamp(min=0)]
    return found
