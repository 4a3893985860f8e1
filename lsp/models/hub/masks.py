"""What each architecture is told of documents, padding and time.

Documents of a row are kept apart in one of these ways (`HubRow.segments`):

`interface`: attention that `transformers` looks up by name gets the documents themselves
    (`attention.py`), and memory stays linear in the length of a row.
`mask4d`: attention that is written out in the published model gets a mask over pairs of positions.
`documents`: what has no such mask is computed document by document (`mixing.py`, `mra.py`,
    `blocks.py`); a decoder beside it gets a mask over pairs of positions.

Positions begin at 0 in every document; where the published model counts them by itself, in its
position embedding, that is told them (`positions.py`). Where nothing of this is possible the model
gets a mask of padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lsp.core.batch import positions_from_segments
from lsp.models.hub import attention, blocks, mixing, mra, positions
from lsp.models.hub.documents import Documents
from lsp.models.hub.table import HubRow
from lsp.models.layers.exchange import Exchange

PREPARE: dict[str, Callable[[nn.Module, Documents], None]] = {
    "big_bird": blocks.prepare_big_bird,
    "bigbird_pegasus": blocks.prepare_big_bird,
    "fnet": mixing.prepare_fnet,
    "mamba": mixing.prepare_mamba,
    "mobilebert": mixing.prepare_mobilebert,
    "mra": mra.prepare,
    "nystromformer": mixing.prepare_nystromformer,
    "rwkv": mixing.prepare_rwkv,
    "switch_transformers": mixing.prepare_switch,
    "yoso": mixing.prepare_yoso,
}
"""Models that are made ready even for rows of one document, by `transformers`' `model_type`."""

INSIDE: dict[str, tuple[str, str]] = {
    "bloom": ("h", "attention_mask"),
    "deberta": ("encoder", "attention_mask"),
    "deberta-v2": ("encoder", "attention_mask"),
    "falcon": ("h", "attention_mask"),
    "flaubert": ("attentions", "mask"),
    "imagegpt": ("h", "attention_mask"),
    "layoutlm": ("encoder", "attention_mask"),
    "markuplm": ("encoder", "attention_mask"),
    "mpt": ("blocks", "attention_mask"),
    "openai-gpt": ("h", "attention_mask"),
    "switch_transformers": ("block", "attention_mask"),
    "xlm": ("attentions", "mask"),
}
"""Bodies that take a mask of two dimensions alone: the modules inside that are given another.

A path of the body, to a module or a list of them, and the name of their argument.
"""

SEEN = ("deberta", "deberta-v2", "xlm", "flaubert")
"""Whose mask is true where a key is seen."""

APART = ("led", "longformer", "longt5", "pegasus_x")
"""Whose encoder reads rows of one document each."""

OFFSETS = {"mra": 2, "nystromformer": 2, "yoso": 2}
"""Row of the position table that belongs to the first token, where the model adds it itself."""

NO_PADDING = ("fnet", "rwkv")
"""Bodies that take no mask at all."""


def prepare(row: HubRow, model: nn.Module, config: Any) -> None:
    """Gets a fresh model ready, once.

    Args:
        row: What is known of it.
        model: Of `transformers`, with its head.
        config: Settled.
    """
    published: Any = model
    model_type = published.config.model_type
    sides = [model]
    if row.kind == "encoder_decoder":
        sides = [published.get_encoder(), published.get_decoder()]
    for side in sides:
        documents = Documents()
        for module in side.modules():
            if hasattr(module, "config"):
                module.documents = documents  # type: ignore[assignment]
        positions.prepare(side, documents, row)
        if model_type in PREPARE:
            PREPARE[model_type](side, documents)
        if model_type in INSIDE:
            _mask_inside(side, documents, model_type)
        if model_type in APART and side is sides[0]:
            blocks.prepare_apart(side, documents)
    if model_type == "xlnet":
        # Its causal mask cannot be joined with others in place; with all masks given, both ways
        # of counting positions are the same (1906.08237, appendix A.1).
        published.transformer.attn_type = "bi"
        # What generation remembers is all of a text; nothing else asks for it.
        published.transformer.mem_len = published.transformer.reuse_len = 0
    if row.segments == "interface":
        _choose(model, "lsp" if config.attention == "auto" else config.attention)


def _choose(model: nn.Module, name: str) -> None:
    attention.register()
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = attention.NAMES.get(name, name)


def share(model: nn.Module, exchange: Exchange) -> None:
    """Has attention ask other processes for positions that are not here."""
    for module in model.modules():
        module.exchange = exchange  # type: ignore[assignment]


def arguments(
    row: HubRow,
    model: nn.Module,
    *,
    input_ids: torch.Tensor,
    segment_ids: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    causal: bool,
    config: Any = None,
    exchange: Exchange | None = None,
    decoder_input_ids: torch.Tensor | None = None,
    decoder_segment_ids: torch.Tensor | None = None,
    decoder_position_ids: torch.Tensor | None = None,
) -> dict[str, Any]:
    """What the published body is given beside the tokens.

    With a decoder's tokens: what its encoder is given, what its decoder is, behind `decoder_`, and
    `cross_attention_mask` for what the decoder sees of the encoder.

    Args:
        row: What is known of it.
        model: The body; with a decoder's tokens the whole model.
        input_ids: (B, L) tokens.
        segment_ids: (B, L) document numbers, 0 for padding; None for one document per row.
        position_ids: (B, L) positions in the document; None for those that follow.
        causal: Whether a position sees none after itself.
        config: Settled; None where no position table begins behind that of padding.
        exchange: Between processes that share rows; None for whole rows.
        decoder_input_ids: (B, T) the decoder's tokens, and so on.
        decoder_segment_ids: (B, T).
        decoder_position_ids: (B, T).
    """
    if decoder_input_ids is not None:
        published: Any = model
        segments_BL = _numbers(input_ids, segment_ids)
        segments_BT = _numbers(decoder_input_ids, decoder_segment_ids)
        encoder, decoder = published.get_encoder(), published.get_decoder()
        given = _side(row, encoder, segments_BL, position_ids, causal=False)
        behind = _side(row, decoder, segments_BT, decoder_position_ids, causal=True)
        given.update({f"decoder_{name}": value for name, value in behind.items()})
        given["cross_attention_mask"] = _mask(row, decoder, segments_BT, False, segments_BL)
        return given
    segments_BL = _numbers(input_ids, segment_ids)
    first = config.first_position if config is not None else 0
    return _side(row, model, segments_BL, position_ids, causal=causal, first=first, of=exchange)


@contextmanager
def following(model: nn.Module, positions_BT: torch.Tensor, first: int) -> Iterator[dict[str, Any]]:
    """For a forward pass of one token behind those that are remembered, all of which it sees.

    Args:
        model: The body, or the decoder beside an encoder.
        positions_BT: (B, 1) the token's positions.
        first: Row of the position table that belongs to the first token.

    Yields:
        What the published body is given beside the token and the memory.
    """
    documents: Any = model.documents
    documents.follow(positions_BT)
    try:
        taken = inspect.signature(model.forward).parameters
        yield {"position_ids": positions_BT + first} if "position_ids" in taken else {}
    finally:
        documents.follow(None)


def _numbers(input_ids: torch.Tensor, segment_ids: torch.Tensor | None) -> torch.Tensor:
    return torch.ones_like(input_ids) if segment_ids is None else segment_ids


def _side(
    row: HubRow,
    model: nn.Module,
    segments_BL: torch.Tensor,
    positions_BL: torch.Tensor | None,
    *,
    causal: bool,
    first: int = 0,
    of: Exchange | None = None,
) -> dict[str, Any]:
    """Of one encoder or decoder: its masks and positions."""
    if positions_BL is None:
        positions_BL = positions_from_segments(segments_BL)
    documents: Any = model.documents
    model_type = _type(model)
    taken = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {}
    if "position_ids" in taken:
        given["position_ids"] = positions_BL + first + OFFSETS.get(model_type, 0)
    if of is not None and of.degree > 1:
        given["attention_mask"] = attention.documents(of.whole(segments_BL), causal)
        return given
    documents.set(segments_BL, positions_BL, causal)
    if model_type == "xlnet":
        given["perm_mask"] = (~attention.dense_mask(documents.given)[:, 0]).to(_dtype(model))
    elif model_type not in NO_PADDING:
        given["attention_mask"] = _mask(row, model, segments_BL, causal)
    return given


def _mask(
    row: HubRow,
    model: nn.Module,
    segments_BL: torch.Tensor,
    causal: bool,
    keys_BK: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a body is given as its mask."""
    model_type = _type(model)
    config: Any = model.config
    # What is computed document by document are encoders, and decoders without one.
    apart = row.segments in ("interface", "mask4d") or (
        row.segments == "documents"
        and (
            (row.kind == "encoder_decoder" and (causal or keys_BK is not None))
            or getattr(config, "attention_type", None) == "original_full"
        )
    )
    if not apart or (model_type in INSIDE and keys_BK is None):
        padding_BK = segments_BL if keys_BK is None else keys_BK
        return (padding_BK != 0).long()
    given_B13M = attention.documents(segments_BL, causal, keys_BK)
    if config._attn_implementation in attention.NAMES.values():
        return given_B13M
    return _additive(attention.dense_mask(given_B13M), _dtype(model))


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    none = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return none.masked_fill(~seen, torch.finfo(dtype).min)


def _mask_inside(model: nn.Module, documents: Documents, model_type: str) -> None:
    """Has modules inside a body see the documents, whatever mask the body has made for them."""
    path, name = INSIDE[model_type]
    for module in _modules_at(model, path):
        place = list(inspect.signature(module.forward).parameters).index(name)

        def given_another(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            place: int = place,
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            own = args[place] if place < len(args) else kwargs.get(name)
            first: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
            if not documents.fits(first.shape):
                return args, kwargs
            mask = _inside(own, documents, model, model_type)
            if place < len(args):
                return (*args[:place], mask, *args[place + 1 :]), kwargs
            return args, kwargs | {name: mask}

        module.register_forward_pre_hook(given_another, with_kwargs=True)


def _modules_at(model: nn.Module, path: str) -> Iterator[nn.Module]:
    for name, module in model.named_modules():
        if name == path or name.endswith(f".{path}"):
            yield from module if isinstance(module, nn.ModuleList) else (module,)
            return
    raise AssertionError(f"{type(model).__name__} has no {path}")


def _inside(own: Any, documents: Documents, model: nn.Module, model_type: str) -> Any:
    """A mask as the body makes them, where documents do not see each other."""
    assert documents.given is not None
    config: Any = model.config
    if config._attn_implementation in attention.NAMES.values():
        return documents.given
    seen_B1LL = attention.dense_mask(documents.given)
    if model_type in SEEN:
        return seen_B1LL[:, 0] if model_type in ("xlm", "flaubert") else seen_B1LL
    if model_type == "mpt":
        return ~seen_B1LL
    if model_type == "falcon" and own is not None:
        if own.dtype == torch.bool:
            return seen_B1LL
        return own.masked_fill(~seen_B1LL, torch.finfo(own.dtype).min)  # has positions in it
    return _additive(seen_B1LL, _dtype(model))


def _type(model: nn.Module) -> str:
    config: Any = model.config
    found: str = config.model_type
    return found


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
