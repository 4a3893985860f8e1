"""Transformer-XL (Dai et al., 1901.02860), which `transformers` had up to 4.x.

Names of classes, arguments, outputs and weights are those it had there. Attention goes through the
queries block by block, so a pass takes memory that is linear in its length.

Letters of shapes: B rows, L positions of the row, M remembered before it, E = M + L keys, N heads,
H width of a head, I = N * H, D width of the stream, Q queries of a block, W keys that they meet, P
distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_transfo_xl import TransfoXLConfig
from .transfo_xl_adaptive import AdaptiveEmbedding, AdaptiveLogSoftmax

RELATIVE, LEARNED_RELATIVE, ABSOLUTE, LEARNED_ABSOLUTE = range(4)
BLOCK = 128
"""Queries that are attended at a time."""


@dataclass
class TransfoXLModelOutput(ModelOutput):
    """What the stack gives.

    Attributes:
        last_hidden_state: (B, L, D).
        mems: What entered each layer at the last `mem_len` positions, (M, B, D) each: to be given
            with the tokens that follow.
        hidden_states: (B, L, D) after the embedding and after every layer, if asked for.
        attentions: (B, N, L, E) weights of every layer, if asked for.
    """

    last_hidden_state: torch.Tensor | None = None
    mems: list[torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class TransfoXLLMHeadModelOutput(ModelOutput):
    """What the language model gives, beside what the stack does.

    Attributes:
        loss: Mean of `losses` over what is predicted, with labels.
        losses: (B, L - 1) cross-entropy of each position, with labels.
        prediction_scores: (B, L, V) log probabilities, without labels.
    """

    loss: torch.Tensor | None = None
    losses: torch.Tensor | None = None
    prediction_scores: torch.Tensor | None = None
    mems: list[torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None

    @property
    def logits(self) -> torch.Tensor | None:
        """The prediction scores."""
        return self.prediction_scores


@dataclass
class TransfoXLSequenceClassifierOutputWithPast(ModelOutput):
    """What the classifier gives, beside what the stack does.

    Attributes:
        loss: With labels.
        logits: (B, num_labels).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mems: list[torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class PositionalEmbedding(nn.Module):
    """Sinusoids of distances."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        # As published files have it. It is rounded with a model in half precision, so nothing here
        # reads it.
        self.register_buffer("inv_freq", self.frequencies(None))

    def frequencies(self, device: torch.device | None) -> torch.Tensor:
        """One for each pair of a sine and a cosine: (D / 2,), fp32."""
        even = torch.arange(0, self.width, 2, dtype=torch.float32, device=device)
        return 1 / (10000 ** (even / self.width))

    def forward(self, place_P: torch.Tensor) -> torch.Tensor:
        """(P,) to (P, D), always computed in fp32: angles of far places need it."""
        angle = torch.outer(place_P.float(), self.frequencies(place_P.device))
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


def attend(
    q_BNLH: torch.Tensor,
    k_BNEH: torch.Tensor,
    v_BNEH: torch.Tensor,
    *,
    reach: int | None,
    r_NPH: torch.Tensor | None,
    u_N1H: torch.Tensor | float,
    w_N1H: torch.Tensor | float,
    b_NP: torch.Tensor | None,
    dropout: nn.Dropout,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The score of a query and a key at distance d is (q + u) k + (q + w) r_d + b_d.

    Args:
        q_BNLH: Queries, of the last L positions.
        k_BNEH: Keys of all positions.
        v_BNEH: Values of all positions.
        reach: Largest distance that is seen; None for any.
        r_NPH: Of the distances 0..P-1; further ones are like the last; None where only keys score.
        u_N1H: Added to the queries that meet keys.
        w_N1H: Added to the queries that meet distances.
        b_NP: Score of each distance; None for nothing.
        dropout: Of attention weights.
        keep: Whether the weights are wanted.

    Returns:
        (B, N, L, H), and the weights (B, N, L, E) if wanted.
    """
    rows, heads, length, size = q_BNLH.shape
    keys, device = k_BNEH.shape[2], q_BNLH.device
    offset, outs, kept = keys - length, [], []
    for start in range(0, length, BLOCK):
        q_BNQH = q_BNLH[:, :, start : start + BLOCK]
        last = offset + start + q_BNQH.shape[2]
        first = 0 if reach is None else max(0, offset + start - reach)
        query_Q1 = torch.arange(offset + start, last, device=device)[:, None]
        distance_QW = query_Q1 - torch.arange(first, last, device=device)
        hidden_QW = distance_QW < 0
        if reach is not None:
            hidden_QW = hidden_QW | (distance_QW > reach)
        scores = (q_BNQH + u_N1H) @ k_BNEH[:, :, first:last].transpose(-1, -2)
        if r_NPH is not None:
            index_QW = distance_QW.clamp(0, r_NPH.shape[1] - 1)
            by_distance = (q_BNQH + w_N1H) @ r_NPH.transpose(-1, -2)
            scores = scores + by_distance.gather(-1, index_QW.expand_as(scores))
            if b_NP is not None:
                scores = scores + b_NP[:, index_QW]
        scores = (scores / size**0.5).masked_fill(hidden_QW, -torch.inf)
        weights = dropout(scores.softmax(-1))
        outs.append(weights @ v_BNEH[:, :, first:last])
        if keep:
            whole = weights.new_zeros(rows, heads, weights.shape[2], keys)
            whole[..., first:last] = weights
            kept.append(whole)
    return torch.cat(outs, dim=2), torch.cat(kept, dim=2) if keep else None


class DecoderAttention(nn.Module):
    """Attention to a row and to what is remembered before it."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.config = config
        heads, size, width = config.n_head, config.d_head, config.d_model
        self.qkv_net = nn.Linear(width, 3 * heads * size, bias=False)
        self.o_net = nn.Linear(heads * size, width, bias=False)
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.drop, self.dropatt = nn.Dropout(config.dropout), nn.Dropout(config.dropatt)
        learned = config.tgt_len + config.mem_len
        if config.attn_type == RELATIVE:
            self.r_net = nn.Linear(width, heads * size, bias=False)
            self.r_r_bias = nn.Parameter(torch.zeros(heads, size))
        if config.attn_type in (RELATIVE, LEARNED_RELATIVE):
            self.r_w_bias = nn.Parameter(torch.zeros(heads, size))
        if config.attn_type in (LEARNED_RELATIVE, LEARNED_ABSOLUTE):
            self.r_emb = nn.Parameter(torch.zeros(learned, heads, size))
        if config.attn_type == LEARNED_RELATIVE:
            self.r_bias = nn.Parameter(torch.zeros(learned, heads))

    def placed(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Adds learned places, the last of the table to the end of the row (`attn_type` 3)."""
        length, known = x_BLD.shape[1], len(self.r_emb)
        if length > known:
            raise ValueError(f"{length} tokens are more than the {known} learned positions")
        return x_BLD + self.r_emb[known - length :].flatten(1)

    def placed_memory(self, memory_BMD: torch.Tensor, length: int) -> torch.Tensor:
        """Adds the learned places before those of the row; further ones are like the first."""
        table, count = self.r_emb.flatten(1), memory_BMD.shape[1]
        before = table[: len(table) - length]
        missing = max(0, count - len(before))
        before = torch.cat([table[:1].expand(missing, -1), before])
        return memory_BMD + before[len(before) - count :]

    def forward(
        self,
        x_BLD: torch.Tensor,
        memory_BMD: torch.Tensor,
        places_PD: torch.Tensor | None,
        reach: int | None,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, L, D) to the same, and the weights if they are to be kept."""
        config, length = self.config, x_BLD.shape[1]
        if config.attn_type == LEARNED_ABSOLUTE:
            memory_BMD = self.placed_memory(memory_BMD, length)
        seen_BED = torch.cat([memory_BMD, x_BLD], dim=1)
        if config.pre_lnorm:
            seen_BED = self.layer_norm(seen_BED)
        # As published, with absolute positions the norm is not for who sees.
        relative = config.attn_type in (RELATIVE, LEARNED_RELATIVE)
        asking_BLD = seen_BED[:, -length:] if relative else x_BLD
        width = config.n_head * config.d_head
        q_BLI = F.linear(asking_BLD, self.qkv_net.weight[:width])
        k_BEI, v_BEI = F.linear(seen_BED, self.qkv_net.weight[width:]).chunk(2, dim=-1)
        r_NPH = b_NP = None
        u: Any = 0.0
        w: Any = 0.0
        if config.attn_type == RELATIVE:
            r_NPH = self.r_net(places_PD).unflatten(-1, (config.n_head, -1)).transpose(0, 1)
            u, w = self.r_w_bias[:, None], self.r_r_bias[:, None]
        elif config.attn_type == LEARNED_RELATIVE:
            known = len(self.r_emb)
            if config.clamp_len > 0:
                known = min(known, config.clamp_len)
            r_NPH = self.r_emb[-known:].flip(0).transpose(0, 1)
            b_NP, u = self.r_bias[-known:].flip(0).t(), self.r_w_bias[:, None]
        out_BNLH, weights = attend(
            self.split(q_BLI),
            self.split(k_BEI),
            self.split(v_BEI),
            reach=reach,
            r_NPH=r_NPH,
            u_N1H=u,
            w_N1H=w,
            b_NP=b_NP,
            dropout=self.dropatt,
            keep=keep,
        )
        out_BLD = x_BLD + self.drop(self.o_net(out_BNLH.transpose(1, 2).flatten(2)))
        return out_BLD if config.pre_lnorm else self.layer_norm(out_BLD), weights

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """Separates the heads: (B, L, N * H) to (B, N, L, H)."""
        return x.unflatten(-1, (self.config.n_head, -1)).transpose(1, 2)


class PositionwiseFF(nn.Module):
    """Two linear layers and a ReLU."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.pre_lnorm = config.pre_lnorm
        self.CoreNet = nn.Sequential(
            nn.Linear(config.d_model, config.d_inner),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.d_inner, config.d_model),
            nn.Dropout(config.dropout),
        )
        self.layer_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to the same."""
        if self.pre_lnorm:
            return x_BLD + self.CoreNet(self.layer_norm(x_BLD))
        return self.layer_norm(x_BLD + self.CoreNet(x_BLD))


class Layer(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__()
        self.dec_attn = DecoderAttention(config)
        self.pos_ff = PositionwiseFF(config)


class TransfoXLPreTrainedModel(PreTrainedModel):
    """What `transformers` asks of a model."""

    config_class = TransfoXLConfig
    base_model_prefix = "transformer"
    accepts_loss_kwargs = False  # the loss is a mean, which the Trainer has to divide by its steps
    _no_split_modules = ("Layer",)

    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, nn.LayerNorm) and name == "weight":
                nn.init.normal_(weight, 1.0, config.init_std)
            elif name in ("bias", "cluster_bias", "r_bias"):
                nn.init.zeros_(weight)
            elif isinstance(module, nn.ParameterList):
                nn.init.normal_(weight, 0.0, config.proj_init_std)
            elif config.init == "uniform":
                nn.init.uniform_(weight, -config.init_range, config.init_range)
            else:
                nn.init.normal_(weight, 0.0, config.init_std)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of all clusters."""
        return self.base_model.word_emb

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding."""
        self.base_model.word_emb = value


class TransfoXLModel(TransfoXLPreTrainedModel):
    """From token ids to hidden states, and from a memory to the next."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.mem_len = config.mem_len
        self.word_emb = AdaptiveEmbedding(config)
        self.drop = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        if config.attn_type in (RELATIVE, ABSOLUTE):
            self.pos_emb = PositionalEmbedding(config.d_model)
        if not config.untie_r:
            for name in ("r_w_bias", "r_r_bias"):
                shared = nn.Parameter(torch.zeros(config.n_head, config.d_head))
                setattr(self, name, shared)
                for layer in self.layers:
                    setattr(layer.dec_attn, name, shared)
        self.post_init()

    def reset_memory_length(self, mem_len: int) -> None:
        """Remembers more or less than in training."""
        if self.config.same_length and mem_len < 1:
            raise ValueError("same_length=True lets each token see mem_len of them: give 1 or more")
        self.mem_len = mem_len

    def init_mems(self, rows: int) -> list[torch.Tensor]:
        """What precedes a text: `mem_len` zeros, (M, B, D) for each layer, or nothing."""
        count = self.mem_len if self.config.zero_memory else 0
        weight = next(self.parameters())
        zeros = weight.new_zeros(count, rows, self.config.d_model)
        return [zeros for _ in range(self.config.n_layer)]

    def places(self, count: int, like: torch.Tensor) -> torch.Tensor:
        """Sinusoids of the distances 0..P-1: (P, D)."""
        config = self.config
        if config.attn_type == RELATIVE and config.clamp_len > 0:
            count = min(count, config.clamp_len + 1)
        place_P = torch.arange(count, dtype=torch.float32, device=like.device)
        if config.clamp_len > 0:
            place_P = place_P.clamp(max=config.clamp_len)
        return self.pos_emb(place_P).to(like.dtype)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        mems: list[torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states of a row and what to remember of it.

        Args:
            input_ids: (B, L) token ids.
            mems: What the call for the tokens before gave; None for the beginning of a text.
            attention_mask: (B, L) 0 for padding, which can only be on the right.
            inputs_embeds: (B, L, D) in the place of `input_ids`.
            output_attentions: Whether to give attention weights.
            output_hidden_states: Whether to give hidden states after each layer.
            return_dict: False for a tuple.
            kwargs: What other models take, and this one does not read.
        """
        config = self.config
        mask = attention_mask
        if mask is not None and bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ValueError("attention_mask: rows can be padded on the right alone")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x_BLD = self.word_emb(input_ids) if inputs_embeds is None else inputs_embeds
        rows, length = x_BLD.shape[:2]
        mems = self.init_mems(rows) if mems is None else mems
        remembered = mems[0].shape[0]
        places_PD: Any = None
        if config.attn_type in (RELATIVE, ABSOLUTE):
            places_PD = self.places(remembered + length, x_BLD)
        if config.attn_type == ABSOLUTE:
            x_BLD = x_BLD + places_PD[:length].flip(0)
        elif config.attn_type == RELATIVE:
            places_PD = self.drop(places_PD)
        x_BLD = self.drop(x_BLD)
        reach = self.mem_len - 1 if config.same_length else None
        entered, kept = [], []
        layer: Any
        for number, layer in enumerate(self.layers):
            memory_BMD = mems[number].transpose(0, 1).to(x_BLD.dtype)
            if config.attn_type == ABSOLUTE and number == 0:
                memory_BMD = memory_BMD + places_PD[length:].flip(0)
            if config.attn_type == LEARNED_ABSOLUTE:
                x_BLD = layer.dec_attn.placed(x_BLD)
            entered.append(x_BLD)
            x_BLD, weights = layer.dec_attn(
                x_BLD, memory_BMD, places_PD, reach, bool(output_attentions)
            )
            x_BLD = layer.pos_ff(x_BLD)
            kept.append(weights)
        x_BLD = self.drop(x_BLD)
        out = TransfoXLModelOutput(
            last_hidden_state=x_BLD,
            mems=[self.remember(old, new) for old, new in zip(mems, entered, strict=True)],
            hidden_states=(*entered, x_BLD) if output_hidden_states else None,
            attentions=tuple(kept) if output_attentions else None,
        )
        return out if return_dict is not False else out.to_tuple()

    def remember(self, old_MBD: torch.Tensor, new_BLD: torch.Tensor) -> torch.Tensor:
        """The last `mem_len` positions of what was remembered and what entered a layer now."""
        whole = torch.cat([old_MBD.to(new_BLD.dtype), new_BLD.detach().transpose(0, 1)])
        return whole[max(0, len(whole) - self.mem_len) :]


class TransfoXLLMHeadModel(TransfoXLPreTrainedModel, GenerationMixin):
    """Log probabilities of the token after each position."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.transformer = TransfoXLModel(config)
        self.crit = AdaptiveLogSoftmax(config)
        tied = {}
        for number in range(len(self.crit.out_layers)):
            name = f"emb_layers.{number}.weight"
            tied[f"crit.out_layers.{number}.weight"] = f"transformer.word_emb.{name}"
        for number, shared in enumerate(config.tie_projs):
            if shared and len(self.crit.out_projs):
                name = f"emb_projs.{number if config.div_val > 1 else 0}"
                tied[f"crit.out_projs.{number}"] = f"transformer.word_emb.{name}"
        self._tied_weights_keys = tied
        self.post_init()

    def reset_memory_length(self, mem_len: int) -> None:
        """Remembers more or less than in training."""
        self.transformer.reset_memory_length(mem_len)

    def init_mems(self, rows: int) -> list[torch.Tensor]:
        """What precedes a text."""
        return self.transformer.init_mems(rows)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        mems: list[torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `TransfoXLModel.forward`.

        Args:
            input_ids: (B, L) token ids.
            mems: What the call for the tokens before gave.
            attention_mask: See there.
            labels: (B, L) the input ids, which are shifted here; -100 to leave out.
            logits_to_keep: Scores are given of so many last positions, or of those in it; 0 for
                all.
            return_dict: False for a tuple.
            kwargs: See there.
        """
        out = self.transformer(input_ids, mems, attention_mask, return_dict=True, **kwargs)
        loss = losses = scores = None
        if labels is not None:
            hidden = out.last_hidden_state[:, :-1]
            losses = self.crit.losses(hidden.flatten(0, 1), labels[:, 1:].flatten())
            losses = losses.view(hidden.shape[:2])
            loss = losses.sum() / (labels[:, 1:] != -100).sum().clamp(min=1)
        else:
            kept: Any = logits_to_keep
            if isinstance(kept, int):
                kept = slice(-kept, None) if kept else slice(None)
            scores = self.crit(out.last_hidden_state[:, kept])
        result = TransfoXLLMHeadModelOutput(
            loss=loss,
            losses=losses,
            prediction_scores=scores,
            mems=out.mems,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result if return_dict is not False else result.to_tuple()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The memory takes the place of keys and values."""
        return False

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The last token and the memory, or the whole text where there is none."""
        inputs = {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}
        if past_key_values is not None and kwargs.get("use_cache", True):
            inputs |= {"input_ids": input_ids[:, -1:], "mems": past_key_values}
        return inputs

    @staticmethod
    def _reorder_cache(mems: list[torch.Tensor], beam_idx: torch.Tensor) -> list[torch.Tensor]:
        """The memory of other beams."""
        return [x.index_select(1, beam_idx.to(x.device)) for x in mems]


class TransfoXLForSequenceClassification(TransfoXLPreTrainedModel):
    """Scores of labels, read at the last token that is not padding."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = TransfoXLModel(config)
        self.score = nn.Linear(config.d_embed, self.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        mems: list[torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `TransfoXLModel.forward`; `labels` are (B,), or (B, num_labels) for several each."""
        out = self.transformer(input_ids, mems, attention_mask, return_dict=True, **kwargs)
        hidden = out.last_hidden_state
        last_B = self.last_token(hidden, input_ids, attention_mask)
        logits = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last_B])
        loss = None
        if labels is not None:
            kind = self.config.problem_type
            if kind == "regression" or (kind is None and self.num_labels == 1):
                loss = F.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
            elif kind == "multi_label_classification" or labels.is_floating_point():
                loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
            else:
                loss = F.cross_entropy(logits.view(-1, self.num_labels), labels.view(-1))
        result = TransfoXLSequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            mems=out.mems,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result if return_dict is not False else result.to_tuple()

    def last_token(
        self,
        hidden: torch.Tensor,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Where each row ends: (B,), by the mask, or else before the first `pad_token_id`."""
        rows, length = hidden.shape[:2]
        if attention_mask is not None:
            place = torch.arange(length, device=hidden.device)
            return torch.where(attention_mask != 0, place, 0).amax(dim=-1)
        padding = self.config.pad_token_id
        if padding is None and rows > 1:
            raise ValueError(
                "pad_token_id is not set: give an attention_mask, or classify one row at a time"
            )
        if padding is None or input_ids is None:
            return torch.full((rows,), length - 1, device=hidden.device)
        return ((input_ids == padding).int().argmax(-1) - 1) % length
