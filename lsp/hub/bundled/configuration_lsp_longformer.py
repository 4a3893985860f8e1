"""Configuration of a Longformer (2004.05150) that `transformers` itself does not have."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class LspLongformerConfig(PretrainedConfig):
    """The published options, and those of the paper that the published model lacks.

    Attributes:
        attention_window: Positions that a token sees beside its own, half of them before and half
            after it, or all of them before it where `is_decoder`; a number, or one per layer.
        attention_dilation: Gap between the positions of a window (section 3.1), for each layer a
            number, or one for each of its heads; empty for none.
        global_tokens: How many tokens at the beginning of a text see all of it and are seen by all
            of it, where no `global_attention_mask` is given.
        is_decoder: Whether a token sees only those before it (section 4).
        residual: `sequential`, as published, or `reversible`: two streams that attention and
            feed-forward add to in turns (1707.04585), each behind a norm.
    """

    model_type = "lsp_longformer"

    def __init__(
        self,
        attention_window: int | list[int] = 512,
        attention_dilation: list[Any] | None = None,
        global_tokens: int = 0,
        is_decoder: bool = False,
        residual: str = "sequential",
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        sep_token_id: int | None = 2,
        pad_token_id: int | None = 1,
        bos_token_id: int | None = 0,
        eos_token_id: int | None = 2,
        **kwargs: Any,
    ) -> None:
        self.attention_window = attention_window
        self.attention_dilation = attention_dilation or []
        self.global_tokens = global_tokens
        self.is_decoder = is_decoder
        self.residual = residual
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.use_cache = use_cache
        self.sep_token_id = sep_token_id
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            sep_token_id=sep_token_id,
            tie_word_embeddings=tie_word_embeddings,
            is_decoder=is_decoder,
            **kwargs,
        )

    @property
    def windows(self) -> list[int]:
        """The window of each layer."""
        given = self.attention_window
        return [given] * self.num_hidden_layers if isinstance(given, int) else list(given)

    @property
    def dilations(self) -> list[list[int]]:
        """The gap of each head of each layer."""
        given = self.attention_dilation or [1] * self.num_hidden_layers
        heads = self.num_attention_heads
        return [[one] * heads if isinstance(one, int) else list(one) for one in given]

    @property
    def first_position(self) -> int:
        """Row of the position table that belongs to the first token, as in RoBERTa."""
        return (self.pad_token_id or 0) + 1
