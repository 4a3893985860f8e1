"""Token mixing without attention scores, document by document.

What `transformers` computes of whole rows here is computed of each document: the Fourier transform
of FNet (2105.03824), the scans of Mamba (2312.00752) and RWKV (2305.13048), YOSO's attention by
collisions (2111.09714) and Nystromformer's by landmarks (2102.03902). Weights, their names and
what is computed of a row with one document stay as they are published.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lsp.models.hub.documents import Documents, doubled, exact, replace_forward


def prepare_fnet(model: nn.Module, documents: Documents) -> None:
    """Fourier transforms over the tokens of a document, without its padding."""
    from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform

    for module in model.modules():
        if isinstance(module, FNetBasicFourierTransform):
            replace_forward(module, _fourier, documents)


def _fourier(module: Any, documents: Documents, hidden_BLD: torch.Tensor) -> tuple[torch.Tensor]:
    def transformed(x_SKD: torch.Tensor, _: torch.Tensor | None = None) -> torch.Tensor:
        out: torch.Tensor = module.fourier_transform(x_SKD).real
        return out

    if not documents.fits(hidden_BLD.shape):
        return (transformed(hidden_BLD),)
    return (documents.each(transformed, [hidden_BLD], exact),)


def prepare_mamba(model: nn.Module, documents: Documents) -> None:
    """Convolutions and scans that begin anew with every document."""
    from transformers.models.mamba.modeling_mamba import MambaMixer

    for module in model.modules():
        if isinstance(module, MambaMixer):
            replace_forward(module, _mamba, documents)


def _mamba(
    module: Any,
    documents: Documents,
    hidden_BLD: torch.Tensor,
    cache_params: Any = None,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    if cache_params is not None or not documents.fits(hidden_BLD.shape):
        published: torch.Tensor = type(module).forward(
            module, hidden_BLD, cache_params, attention_mask, **kwargs
        )
        return published
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    x_BLE, gate_BLE = module.in_proj(hidden_BLD).chunk(2, dim=-1)

    def convolved(x_SE: torch.Tensor) -> torch.Tensor:
        out_ES: torch.Tensor = module.conv1d(x_SE.mT[None])[0]
        return out_ES[:, : len(x_SE)].mT

    x_BLE = module.act(documents.spaced(convolved, x_BLE, module.conv_kernel_size - 1))
    states = module.ssm_state_size
    step_BLR, b_BLS, c_BLS = module.x_proj(x_BLE).split(
        [module.time_step_rank, states, states], dim=-1
    )
    # Through the module, as under sharding its weights have to be.
    step_BLE = module.dt_proj(step_BLR).float()
    decay_ES, through_E = -module.A_log.float().exp(), module.D.float()

    def scanned(*given: torch.Tensor) -> torch.Tensor:
        x_SEK, step_SEK, b_SSK, c_SSK, gate_SEK = (x.mT for x in given[:-1])
        out_SEK: torch.Tensor = mamba_selective_scan(
            x_SEK.contiguous(),
            step_SEK.contiguous(),
            decay_ES,
            b_SSK.contiguous(),
            c_SSK.contiguous(),
            D=through_E,
            z=gate_SEK.contiguous(),
            delta_softplus=True,
            use_mambapy=module.use_mambapy,
            use_associative_scan=module.use_associative_scan,
        )
        return out_SEK.mT

    out_BLE = documents.each(scanned, [x_BLE, step_BLE, b_BLS, c_BLS, gate_BLE], doubled)
    mixed: torch.Tensor = module.out_proj(out_BLE.to(hidden_BLD.dtype))
    return mixed


def prepare_rwkv(model: nn.Module, documents: Documents) -> None:
    """Shifts in time and scans that begin anew with every document."""
    from transformers.models.rwkv.modeling_rwkv import RwkvFeedForward, RwkvSelfAttention

    for module in model.modules():
        if isinstance(module, RwkvSelfAttention):
            replace_forward(module, _rwkv, documents)
        if isinstance(module, RwkvSelfAttention | RwkvFeedForward):
            replace_forward(module.time_shift, _shifted, documents)


def _shifted(_: nn.Module, documents: Documents, hidden_BLD: torch.Tensor) -> torch.Tensor:
    before_BLD = F.pad(hidden_BLD, (0, 0, 1, -1))
    if documents.fits(hidden_BLD.shape):
        before_BLD = before_BLD.masked_fill(documents.starts[..., None], 0.0)
    return before_BLD


def _rwkv(
    module: Any,
    documents: Documents,
    hidden_BLD: torch.Tensor,
    state: Any = None,
    use_cache: bool = False,
) -> tuple[torch.Tensor, Any]:
    if state is not None or use_cache or not documents.fits(hidden_BLD.shape):
        published: tuple[torch.Tensor, Any] = type(module).forward(
            module, hidden_BLD, state, use_cache
        )
        return published
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention

    receptance_BLD, key_BLD, value_BLD, _ = module.extract_key_value(hidden_BLD)

    def scanned(k_SKD: torch.Tensor, v_SKD: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        out_SKD: torch.Tensor = rwkv_linear_attention(
            module.time_decay, module.time_first, k_SKD, v_SKD
        )[0]
        return out_SKD

    mixed_BLD = documents.each(scanned, [key_BLD, value_BLD], doubled)
    return module.output(receptance_BLD * mixed_BLD), None


def prepare_mobilebert(model: nn.Module, documents: Documents) -> None:
    """Tokens that are joined with those beside them in their document alone (2004.02984)."""
    from transformers.models.mobilebert.modeling_mobilebert import MobileBertEmbeddings

    def beside(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (joined_BLX,) = args
        if not documents.fits(joined_BLX.shape):
            return args
        after_BLE, own_BLE, before_BLE = joined_BLX.chunk(3, dim=-1)
        first_BL1 = documents.starts[..., None]
        last_BL1 = F.pad(first_BL1[:, 1:], (0, 0, 0, 1), value=True)
        after_BLE = after_BLE.masked_fill(last_BL1, 0.0)
        before_BLE = before_BLE.masked_fill(first_BL1, 0.0)
        return (torch.cat([after_BLE, own_BLE, before_BLE], dim=-1),)

    for module in model.modules():
        if isinstance(module, MobileBertEmbeddings) and module.trigram_input:
            module.embedding_transformation.register_forward_pre_hook(beside)


def prepare_switch(model: nn.Module, documents: Documents) -> None:
    """Experts with a capacity for each document (2101.03961), as they have for a row."""
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        SwitchTransformersTop1Router,
    )

    for module in model.modules():
        if isinstance(module, SwitchTransformersTop1Router):
            replace_forward(module, _routed, documents)


def _routed(
    module: Any, documents: Documents, hidden_BLD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    published = type(module).forward
    if not documents.fits(hidden_BLD.shape):
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = published(module, hidden_BLD)
        return found
    capacity = module.expert_capacity
    module.expert_capacity = hidden_BLD.shape[1]
    try:
        chosen_BLX, weight_BL1, scores_BLX = published(module, hidden_BLD)
    finally:
        module.expert_capacity = capacity
    so_far_BLX = chosen_BLX.cumsum(1)
    index_L = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)
    start_BL = index_L.where(documents.starts, 0).cummax(1).values
    before_BLX = (so_far_BLX - chosen_BLX).gather(1, start_BL[..., None].expand_as(chosen_BLX))
    return chosen_BLX * (so_far_BLX - before_BLX <= capacity), weight_BL1, scores_BLX


def prepare_yoso(model: nn.Module, documents: Documents) -> None:
    """Attention by the expected number of collisions, within documents."""
    from transformers.models.yoso.modeling_yoso import YosoSelfAttention

    for module in model.modules():
        if isinstance(module, YosoSelfAttention):
            replace_forward(module, _yoso, documents)


def _yoso(
    module: Any,
    documents: Documents,
    hidden_BLD: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    output_attentions: bool = False,
) -> tuple[torch.Tensor]:
    from transformers.models.yoso.modeling_yoso import YosoCumulation, normalize

    q_BLNH, k_BLNH, v_BLNH = _projected(module, hidden_BLD)
    q_BLNH, k_BLNH = normalize([q_BLNH, k_BLNH])

    def attended(*given: torch.Tensor) -> torch.Tensor:
        *qkv_SKNH, real_SK = given
        qkv_GKH = (x.transpose(1, 2).flatten(0, 1) for x in qkv_SKNH)
        real_GK = real_SK.repeat_interleave(module.num_attention_heads, dim=0).int()
        out_GKH = YosoCumulation.apply(real_GK, real_GK, *qkv_GKH, module.lsh_config)
        out_SKNH: torch.Tensor = out_GKH.unflatten(0, (len(real_SK), -1)).transpose(1, 2)
        return out_SKNH

    out_BLNH = normalize(_each(documents, attended, [q_BLNH, k_BLNH, v_BLNH], doubled))
    if module.use_conv:
        out_BLNH = out_BLNH + _convolved(module, documents, v_BLNH)
    return (out_BLNH.flatten(2),)


def prepare_nystromformer(model: nn.Module, documents: Documents) -> None:
    """Landmarks of one document each, which has the row that it would have alone."""
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    for module in model.modules():
        if isinstance(module, NystromformerSelfAttention):
            replace_forward(module, _nystrom, documents)


def _nystrom(
    module: Any,
    documents: Documents,
    hidden_BLD: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    output_attentions: bool = False,
) -> tuple[torch.Tensor]:
    q_BLNH, k_BLNH, v_BLNH = _projected(module, hidden_BLD)
    root = module.attention_head_size**0.25
    q_BLNH, k_BLNH = q_BLNH / root, k_BLNH / root
    out_BLNH = _each(
        documents,
        lambda *given: _by_landmarks(module, *given),
        [q_BLNH, k_BLNH, v_BLNH],
        lambda _: hidden_BLD.shape[1],
    )
    if module.conv_kernel_size is not None:
        out_BLNH = out_BLNH + _convolved(module, documents, v_BLNH)
    return (out_BLNH.flatten(2),)


def _by_landmarks(
    module: Any,
    q_SKNH: torch.Tensor,
    k_SKNH: torch.Tensor,
    v_SKNH: torch.Tensor,
    real_SK: torch.Tensor,
) -> torch.Tensor:
    """Attention through the means of runs of positions (section 3); padding adds zeros to them."""
    q_SNKH, k_SNKH, v_SNKH = (
        (x * real_SK[:, :, None, None]).transpose(1, 2) for x in (q_SKNH, k_SKNH, v_SKNH)
    )

    def seen_weights(queries_SNXH: torch.Tensor) -> torch.Tensor:
        scores_SNXK = queries_SNXH @ k_SNKH.mT
        hidden = torch.finfo(scores_SNXK.dtype).min
        return scores_SNXK.masked_fill(~real_SK[:, None, None], hidden).softmax(-1)

    if module.num_landmarks == module.seq_len:
        return (seen_weights(q_SNKH) @ v_SNKH).transpose(1, 2)
    q_SNMH, k_SNMH = (x.unflatten(2, (module.num_landmarks, -1)).mean(3) for x in (q_SNKH, k_SNKH))
    from_SNKM = (q_SNKH @ k_SNMH.mT).softmax(-1)
    between_SNMM = (q_SNMH @ k_SNMH.mT).softmax(-1)
    inverse_SNMM = _inverse(between_SNMM, per_head=module.init_option != "original")
    out_SNKH = (from_SNKM @ inverse_SNMM) @ (seen_weights(q_SNMH) @ v_SNKH)
    return out_SNKH.transpose(1, 2)


def _inverse(matrix_SNMM: torch.Tensor, *, per_head: bool, steps: int = 6) -> torch.Tensor:
    """The pseudo-inverse by the published iteration (section 3.2).

    Its published beginning is scaled by a maximum over the batch, through which its rows would
    depend on each other; here it is one over the row.
    """
    sums_SNM = matrix_SNMM.sum(-2)
    largest = sums_SNM.amax(-1 if per_head else (-1, -2), keepdim=True)[..., None]
    unit_MM = torch.eye(matrix_SNMM.shape[-1], device=matrix_SNMM.device, dtype=matrix_SNMM.dtype)
    found_SNMM = matrix_SNMM.mT / largest
    for _ in range(steps):
        product_SNMM = matrix_SNMM @ found_SNMM
        inner_SNMM = 15 * unit_MM - product_SNMM @ (7 * unit_MM - product_SNMM)
        found_SNMM = 0.25 * found_SNMM @ (13 * unit_MM - product_SNMM @ inner_SNMM)
    return found_SNMM


def _projected(module: Any, hidden_BLD: torch.Tensor) -> list[torch.Tensor]:
    heads, size = module.num_attention_heads, module.attention_head_size
    projections = (module.query, module.key, module.value)
    return [project(hidden_BLD).unflatten(-1, (heads, size)) for project in projections]


def _each(documents: Documents, function: Any, xs: list[torch.Tensor], length_of: Any) -> Any:
    if documents.fits(xs[0].shape):
        return documents.each(function, xs, length_of)
    return function(*xs, torch.ones(xs[0].shape[:2], dtype=torch.bool, device=xs[0].device))


def _convolved(module: Any, documents: Documents, v_BLNH: torch.Tensor) -> torch.Tensor:
    """The depthwise convolution of values over the tokens of a document."""

    def convolved(v_KNH: torch.Tensor) -> torch.Tensor:
        out_NKH: torch.Tensor = module.conv(v_KNH.transpose(0, 1)[None])[0]
        return out_NKH[:, : len(v_KNH)].transpose(0, 1)

    if not documents.fits(v_BLNH.shape):
        out_BNLH: torch.Tensor = module.conv(v_BLNH.transpose(1, 2))
        return out_BNLH.transpose(1, 2)
    v_BLNH = v_BLNH * documents.real[:, :, None, None]
    return documents.spaced(convolved, v_BLNH, module.conv.kernel_size[0])
