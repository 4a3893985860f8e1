"""NEZHA (Wei et al., 1909.00204), which `transformers` had up to 4.x.

Classes, arguments and names of weights are as they were there. The letters of shapes are in
`nezha_layers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput

from .configuration_nezha import NezhaConfig
from .nezha_layers import Embeddings, Encoder, Heads, Pooler


@dataclass
class NezhaForPreTrainingOutput(ModelOutput):
    """What `NezhaForPreTraining` gives.

    Attributes:
        loss: The mean loss of tokens and that of pairs, added; with both labels.
        prediction_logits: (B, L, V) scores of tokens.
        seq_relationship_logits: (B, 2) whether the second text follows the first, or not.
        hidden_states: (B, L, D) each.
        attentions: (B, N, L, S) each.
    """

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class NezhaPreTrainedModel(PreTrainedModel):
    """What `transformers` asks of a model."""

    config_class = NezhaConfig
    base_model_prefix = "nezha"
    accepts_loss_kwargs = False  # losses are means, which the Trainer has to divide by its steps
    _no_split_modules = ("Layer",)
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"positions_encoding"]


class NezhaModel(NezhaPreTrainedModel):
    """From token ids to hidden states."""

    def __init__(self, config: NezhaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of words."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the embedding of words."""
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states after the last layer, and what the pooler makes of the first.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, S) 0 for padding, where S counts the tokens in the cache too; or
                (B, L, S) 0 for keys that a query does not see.
            token_type_ids: (B, L) which text of a pair a token belongs to.
            inputs_embeds: (B, L, D) in the place of `input_ids`.
            past_key_values: Keys and values of the tokens before, if causal.
            use_cache: Whether to fill such a cache.
            output_attentions: Whether to give the weights of each layer too.
            output_hidden_states: Whether to give the hidden states after the embeddings and after
                every layer too.
            return_dict: False for a tuple.
            kwargs: What other models take, and this one does not read.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        words_BLD = inputs_embeds
        if words_BLD is None:
            words_BLD = self.embeddings.word_embeddings(input_ids)
        rows, length = words_BLD.shape[:2]
        use_cache = config.use_cache if use_cache is None else use_cache
        cache = None
        if config.is_decoder and (use_cache or past_key_values is not None):
            cache = DynamicCache() if past_key_values is None else past_key_values
        total = length + (0 if cache is None else int(cache.get_seq_length()))
        if total > config.max_position_embeddings:
            raise ValueError(
                f"{total} tokens are more than the {config.max_position_embeddings} positions "
                "(max_position_embeddings) of this model"
            )
        if attention_mask is None:
            attention_mask = torch.ones(rows, total, device=words_BLD.device)
        visible = attention_mask != 0
        if visible.dim() == 2:
            visible = visible[:, None]
        if token_type_ids is None:
            token_type_ids = torch.zeros(rows, length, dtype=torch.long, device=words_BLD.device)

        x_BLD = self.embeddings(words_BLD, token_type_ids)
        every, weights = [x_BLD], []
        for layer in self.encoder.layer:
            shown: list[torch.Tensor] = []
            x_BLD = layer(x_BLD, visible, cache, shown)
            if output_hidden_states:
                every.append(x_BLD)
            if output_attentions:
                weights.append(torch.cat(shown, dim=2))
        out = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=x_BLD,
            pooler_output=None if self.pooler is None else self.pooler(x_BLD),
            past_key_values=cache if use_cache else None,
            hidden_states=tuple(every) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )
        return out if return_dict is not False else out.to_tuple()


class NezhaWithTokens(NezhaPreTrainedModel):
    """What the models that score tokens share."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "cls.predictions.decoder.weight": "nezha.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    pairs: ClassVar[bool] = False

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config, add_pooling_layer=self.pairs)
        self.cls = Heads(config, tokens=True, pairs=self.pairs)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The projection onto the vocabulary."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replaces the projection onto the vocabulary."""
        self.cls.predictions.decoder = value
        self.cls.predictions.bias = value.bias


class NezhaForPreTraining(NezhaWithTokens):
    """Scores of the token at each position, and of whether the second text follows the first."""

    pairs = True

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `NezhaModel.forward`.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: As there.
            token_type_ids: As there.
            labels: (B, L) the tokens themselves, -100 where none is asked.
            next_sentence_label: (B,) 0 where the second text follows the first, 1 where it does
                not.
            return_dict: False for a tuple.
            kwargs: As there.
        """
        out = self.nezha(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        scores = self.cls.predictions(out.last_hidden_state)
        of_pairs = self.cls.seq_relationship(out.pooler_output)
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = classes(scores, labels) + classes(of_pairs, next_sentence_label)
        result = NezhaForPreTrainingOutput(
            loss=loss,
            prediction_logits=scores,
            seq_relationship_logits=of_pairs,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result if return_dict is not False else result.to_tuple()


class NezhaForMaskedLM(NezhaWithTokens):
    """Scores of the token at each position; `labels` are those tokens, -100 where none is asked."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `NezhaModel.forward`; gives `loss` (with labels) and `logits` (B, L, V)."""
        out = self.nezha(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        logits = self.cls.predictions(out.last_hidden_state)
        result = MaskedLMOutput(
            loss=None if labels is None else classes(logits, labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result if return_dict is not False else result.to_tuple()


class NezhaForCausalLM(NezhaWithTokens, GenerationMixin):
    """Scores of the token after each position; `labels` are the input ids, -100 to leave out."""

    def __init__(self, config: NezhaConfig) -> None:
        if not config.is_decoder:
            raise ValueError("is_decoder=False: a model that sees both sides cannot continue")
        super().__init__(config)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `NezhaModel.forward`.

        Gives `loss` (with labels, which are shifted here), `logits` (B, L, V), or of the last
        `logits_to_keep` positions or those in it, and `past_key_values`.
        """
        out = self.nezha(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        kept: Any = logits_to_keep
        if isinstance(kept, int):
            kept = slice(-kept, None) if kept else slice(None)
        logits = self.cls.predictions(out.last_hidden_state[:, kept])
        result = CausalLMOutputWithPast(
            loss=None if labels is None else classes(logits[:, :-1], labels[:, 1:]),
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result if return_dict is not False else result.to_tuple()


class NezhaForNextSentencePrediction(NezhaPreTrainedModel):
    """Whether the second text follows the first."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config)
        self.cls = Heads(config, tokens=False, pairs=True)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `NezhaModel.forward`; `labels` (B,) are 0 where it does, 1 where it does not."""
        out = self.nezha(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        logits = self.cls.seq_relationship(out.pooler_output)
        result = NextSentencePredictorOutput(
            loss=None if labels is None else classes(logits, labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result if return_dict is not False else result.to_tuple()


class NezhaForSequenceClassification(NezhaPreTrainedModel):
    """Labels of a text."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `NezhaModel.forward`; `labels` are classes (B,), or numbers."""
        out = self.nezha(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(out.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        result = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )
        return result if return_dict is not False else result.to_tuple()


class NezhaForMultipleChoice(NezhaPreTrainedModel):
    """Which of several continuations fits."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `NezhaModel.forward`; inputs have a second dimension for the choices."""
        given = (input_ids, attention_mask, token_type_ids, inputs_embeds)
        choices = next(x.shape[1] for x in (input_ids, inputs_embeds) if x is not None)
        flat = (None if x is None else x.flatten(0, 1) for x in given)
        out = self.nezha(*flat, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(out.pooler_output)).view(-1, choices)
        result = MultipleChoiceModelOutput(
            loss=None if labels is None else classes(logits, labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result if return_dict is not False else result.to_tuple()


class NezhaForTokenClassification(NezhaPreTrainedModel):
    """Labels of each token."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `NezhaModel.forward`; `labels` (B, L) are classes, -100 for what does not count."""
        out = self.nezha(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(out.last_hidden_state))
        result = TokenClassifierOutput(
            loss=None if labels is None else classes(logits, labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result if return_dict is not False else result.to_tuple()


class NezhaForQuestionAnswering(NezhaPreTrainedModel):
    """Where in a text an answer begins and ends."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `NezhaModel.forward`; positions (B,) beyond the text count for nothing."""
        out = self.nezha(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        start_BL, end_BL = self.qa_outputs(out.last_hidden_state).unbind(-1)
        result = QuestionAnsweringModelOutput(
            loss=self.loss_function(start_BL, end_BL, start_positions, end_positions),
            start_logits=start_BL,
            end_logits=end_BL,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result if return_dict is not False else result.to_tuple()


def classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over labels that are not -100, in fp32."""
    labels = labels.to(logits.device).flatten()
    return F.cross_entropy(logits.flatten(0, -2).float(), labels)
