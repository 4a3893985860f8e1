"""A Longformer (Beltagy et al., 2004.05150) that `transformers` itself does not have.

Causal, with gaps between the positions of a window, or with two reversible streams; everything else
is as published, and so are the names of the weights where there is a published one. The letters of
shapes are in `lsp_longformer_layers.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
)

from .configuration_lsp_longformer import LspLongformerConfig
from .lsp_longformer_layers import Embeddings, Encoder


class LspLongformerPreTrainedModel(PreTrainedModel):
    """What `transformers` asks of a model."""

    config_class = LspLongformerConfig
    base_model_prefix = "longformer"
    accepts_loss_kwargs = False  # the loss is a mean, which the Trainer has to divide by its steps
    _no_split_modules = ("Layer", "ReversibleLayer")

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of words."""
        return self.base_model.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of words."""
        self.base_model.embeddings.word_embeddings = value


class LspLongformerModel(LspLongformerPreTrainedModel):
    """From token ids to hidden states."""

    def __init__(self, config: LspLongformerConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states after the last layer.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, S) 0 for padding; S counts the tokens in the cache too.
            global_attention_mask: (B, L) 1 for tokens that see and are seen by all others; None for
                the first `config.global_tokens`.
            token_type_ids: (B, L).
            position_ids: (B, L) positions in the text, from 0; None for those that follow from
                `attention_mask`.
            inputs_embeds: (B, L, D) in the place of `input_ids`.
            past_key_values: Keys and values of the tokens before, if causal.
            use_cache: Whether to fill such a cache.
            output_hidden_states: Whether to give the hidden states after the embeddings and after
                every layer (of two streams the mean) too.
            return_dict: False for a tuple.
            kwargs: What other models take, and this one does not read.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions=True: attention weights are not kept")
        words_BLD = inputs_embeds
        if words_BLD is None:
            words_BLD = self.embeddings.word_embeddings(input_ids)
        rows, length = words_BLD.shape[:2]
        device = words_BLD.device
        use_cache = config.use_cache if use_cache is None else use_cache
        cache = None
        if config.is_decoder and (use_cache or past_key_values is not None):
            cache = DynamicCache() if past_key_values is None else past_key_values
        past = 0 if cache is None else int(cache.get_seq_length())
        if attention_mask is None:
            attention_mask = torch.ones(rows, past + length, device=device)
        visible_BS = attention_mask != 0
        if position_ids is None:
            position_ids = (visible_BS.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        if int(position_ids.max()) >= config.max_position_embeddings - config.first_position:
            raise ValueError(
                f"{int(position_ids.max()) + 1} tokens are more than the "
                f"{config.max_position_embeddings - config.first_position} positions that this "
                "model has"
            )
        place_BL = position_ids.to(device) + config.first_position
        place_BL = place_BL.masked_fill(~visible_BS[:, past:], config.first_position - 1)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(place_BL)
        if global_attention_mask is None and config.global_tokens:
            global_attention_mask = position_ids < config.global_tokens
        global_BS = None
        if global_attention_mask is not None:
            if config.is_decoder:
                raise ValueError("global_attention_mask lets a causal model see later tokens")
            global_BS = (global_attention_mask != 0) & visible_BS
            if not bool(global_BS.any()):
                global_BS = None

        x_BLD = self.embeddings(words_BLD, place_BL, token_type_ids)
        streams: tuple[torch.Tensor, ...] = (x_BLD, x_BLD) if self.encoder.reversible else (x_BLD,)
        every = [x_BLD]
        for layer in self.encoder.layer:
            streams = layer(streams, visible_BS, global_BS, cache)
            if output_hidden_states:
                every.append(sum(streams) / len(streams))
        out = BaseModelOutputWithPast(
            last_hidden_state=self.encoder.join(streams),
            past_key_values=cache if use_cache else None,
            hidden_states=tuple(every) if output_hidden_states else None,
        )
        return out if return_dict is not False else out.to_tuple()


class Head(nn.Module):
    """A dense layer, a norm, and the projection onto the vocabulary, as in RoBERTa."""

    def __init__(self, config: LspLongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        """Scores: (B, L, V)."""
        return self.decoder(self.layer_norm(F.gelu(self.dense(hidden_BLD))))


class LspLongformerLanguageModel(LspLongformerPreTrainedModel):
    """What both language models share."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.decoder.weight": "longformer.embeddings.word_embeddings.weight",
    }

    def __init__(self, config: LspLongformerConfig) -> None:
        super().__init__(config)
        self.longformer = LspLongformerModel(config)
        self.lm_head = Head(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The projection onto the vocabulary."""
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replaces the projection onto the vocabulary."""
        self.lm_head.decoder = value


class LspLongformerForMaskedLM(LspLongformerLanguageModel):
    """Scores of the token at each position; `labels` are those tokens, -100 where none is asked."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `LspLongformerModel.forward`; gives `loss` (with labels) and `logits` (B, L, V)."""
        out = self.longformer(input_ids, attention_mask, return_dict=True, **kwargs)
        logits = self.lm_head(out.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device))
        result = MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)
        return result if return_dict is not False else result.to_tuple()


class LspLongformerForCausalLM(LspLongformerLanguageModel, GenerationMixin):
    """Scores of the token after each position; `labels` are the input ids, -100 to leave out."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `LspLongformerModel.forward`.

        Gives `loss` (with labels, which are shifted here), `logits` (B, L, V), or of the last
        `logits_to_keep` positions or those in it, and `past_key_values`.
        """
        out = self.longformer(input_ids, attention_mask, return_dict=True, **kwargs)
        kept: Any = logits_to_keep
        if isinstance(kept, int):
            kept = slice(-kept, None) if kept else slice(None)
        logits = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            shifted = labels[:, 1:].to(logits.device)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), shifted.flatten())
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
        )
        return result if return_dict is not False else result.to_tuple()
