"""Mega (Ma et al., 2209.10655), which `transformers` had up to 4.x.

Names of classes and weights are those it had there. Chunks are counted from the first token that is
no padding, and rows of any length are read. The letters of shapes are in `mega_layers.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
)

from .configuration_mega import MegaConfig
from .mega_layers import (
    MegaBlock,
    MegaMemory,
    MegaMovingAverageGatedAttention,
    MegaMultiDimensionDampedEma,
    MegaRotaryRelativePositionalBias,
    MegaSimpleRelativePositionalBias,
    RootMeanSquareNorm,
    Text,
)


class MegaPreTrainedModel(PreTrainedModel):
    """What `transformers` asks of a model."""

    config_class = MegaConfig
    base_model_prefix = "mega"
    accepts_loss_kwargs = False  # the loss is a mean, which the Trainer has to divide by its steps
    _no_split_modules = ("MegaBlock",)

    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        std = config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            elif config.pad_token_id is not None and len(module.weight) == config.vocab_size:
                nn.init.zeros_(module.weight[config.pad_token_id])
        elif isinstance(module, MegaMultiDimensionDampedEma):
            for factor in (module.damping_factor, module.decay_factor):
                nn.init.normal_(factor, 0.0, config.ema_delta_alpha_range)
            # Averages count for and against in turns, which is more stable.
            for first, mean in ((0, 1.0), (1, -1.0)):
                nn.init.normal_(
                    module.ema_expansion_matrix[:, first::2], mean, config.ema_beta_range
                )
            for weight in (module.kernel_projection_matrix, module.residual_weight):
                nn.init.normal_(weight, 0.0, config.ema_gamma_omega_range)
        elif isinstance(module, MegaMovingAverageGatedAttention):
            nn.init.normal_(module.qk_weight, 0.0, std)
            nn.init.zeros_(module.qk_bias)
        elif isinstance(
            module, MegaRotaryRelativePositionalBias | MegaSimpleRelativePositionalBias
        ):
            for weight in module.parameters():
                nn.init.normal_(weight, 0.0, std)
        elif isinstance(module, nn.LayerNorm | RootMeanSquareNorm):
            for name, weight in module.named_parameters():
                nn.init.constant_(weight, 0.0 if name == "bias" else 1.0)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of words."""
        return self.base_model.embedding_layer.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of words."""
        self.base_model.embedding_layer.word_embeddings = value


class MegaEmbeddings(nn.Module):
    """Words, and token types where there are any."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.add_token_type_embeddings:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)


class MegaModel(MegaPreTrainedModel):
    """From token ids to hidden states."""

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        if config.is_decoder and config.bidirectional:
            raise ValueError("bidirectional=True averages over tokens that a decoder must not see")
        self.embedding_layer = MegaEmbeddings(config)
        self.layers = nn.ModuleList(MegaBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: MegaMemory | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states after the last layer.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, S) 0 for padding, which can be on both sides; S counts the tokens
                before these too.
            token_type_ids: (B, L), where the model has them.
            inputs_embeds: (B, L, D) in the place of `input_ids`.
            past_key_values: What the call for the tokens before gave, if causal.
            use_cache: Whether to give such a memory, which a truncated average does not have.
            output_hidden_states: Whether to give those after the embedding and every layer too.
            return_dict: False for a tuple.
            kwargs: What other models take, and this one does not read.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions=True: attention weights are not kept")
        x_BLD = inputs_embeds
        if x_BLD is None:
            x_BLD = self.embedding_layer.word_embeddings(input_ids)
        if config.add_token_type_embeddings:
            if token_type_ids is None:
                token_type_ids = torch.zeros(x_BLD.shape[:2], dtype=torch.long, device=x_BLD.device)
            x_BLD = x_BLD + self.embedding_layer.token_type_embeddings(token_type_ids)
        rows, length = x_BLD.shape[:2]
        use_cache = config.use_cache if use_cache is None else use_cache
        memory = past_key_values
        remembers = use_cache and config.is_decoder and config.truncation is None
        if memory is None and remembers:
            memory = MegaMemory(config.num_hidden_layers)
        total = length + (0 if memory is None else memory.length)
        if attention_mask is None:
            attention_mask = torch.ones(rows, total, device=x_BLD.device)
        visible_BS = attention_mask.to(x_BLD.device) != 0
        if bool((visible_BS[:, 1:] & ~visible_BS[:, :-1]).sum(-1).gt(~visible_BS[:, 0]).any()):
            raise ValueError("attention_mask: padding can be before or after a text, not within")
        text = Text(visible_BS, (visible_BS.long().cumsum(-1) - 1).clamp(min=0))
        if config.relative_positional_bias == "simple" and not config.use_chunking:
            longest = int(text.places.max()) + 1
            if longest > config.known_distance + 1:
                raise ValueError(
                    f"{longest} tokens are more than the {config.known_distance + 1} that "
                    "relative_positional_bias=simple has numbers for"
                )
        every = [x_BLD]
        for number, layer in enumerate(self.layers):
            before = None if memory is None else memory.layers[number]
            x_BLD, after = layer(x_BLD, text, before)
            if memory is not None:
                memory.layers[number] = after
            every.append(x_BLD)
        if memory is not None:
            memory.length = total
        out = BaseModelOutputWithPast(
            last_hidden_state=x_BLD,
            past_key_values=memory,
            hidden_states=tuple(every) if output_hidden_states else None,
        )
        return out if return_dict is not False else out.to_tuple()


class MegaLanguageModel(MegaPreTrainedModel):
    """What both language models share."""

    head: ClassVar[str]

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        self.mega = MegaModel(config)
        self.dense = None
        if config.add_lm_hidden_dense_layer:
            self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        setattr(self, self.head, nn.Linear(config.hidden_size, config.vocab_size))
        self.post_init()

    def scores(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to (B, L, V)."""
        if self.dense is not None:
            hidden_BLD = torch.tanh(self.dense(hidden_BLD))
        return self.get_output_embeddings()(hidden_BLD)

    def get_output_embeddings(self) -> nn.Module:
        """The projection onto the vocabulary."""
        return getattr(self, self.head)

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replaces the projection onto the vocabulary."""
        setattr(self, self.head, value)


class MegaForMaskedLM(MegaLanguageModel):
    """Scores of the token at each position; `labels` are those tokens, -100 where none is asked."""

    head = "mlm_head"
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "mlm_head.weight": "mega.embedding_layer.word_embeddings.weight",
    }

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `MegaModel.forward`; gives `loss` (with labels) and `logits` (B, L, V)."""
        out = self.mega(input_ids, attention_mask, return_dict=True, **kwargs)
        logits = self.scores(out.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device))
        result = MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)
        return result if return_dict is not False else result.to_tuple()


class MegaForCausalLM(MegaLanguageModel, GenerationMixin):
    """Scores of the token after each position; `labels` are the input ids, -100 to leave out."""

    head = "lm_head"
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.weight": "mega.embedding_layer.word_embeddings.weight",
    }

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `MegaModel.forward`.

        Gives `loss` (with labels, which are shifted here), `logits` (B, L, V), or of the last
        `logits_to_keep` positions or those in it, and `past_key_values`.
        """
        out = self.mega(input_ids, attention_mask, return_dict=True, **kwargs)
        kept: Any = logits_to_keep
        if isinstance(kept, int):
            kept = slice(-kept, None) if kept else slice(None)
        logits = self.scores(out.last_hidden_state[:, kept])
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

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The memory has averages beside keys and values."""
        return False

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The last token and the memory, or the whole text where there is none."""
        use_cache = kwargs.get("use_cache", True)
        inputs = {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}
        inputs["use_cache"] = use_cache
        if past_key_values is not None and use_cache:
            inputs |= {"input_ids": input_ids[:, -1:], "past_key_values": past_key_values}
        return inputs
