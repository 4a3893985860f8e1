"""Configuration of Mega (2209.10655), which `transformers` had up to 4.x."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class MegaConfig(PretrainedConfig):
    """The published options, with their names and their defaults.

    Attributes:
        intermediate_size: Width of the values that attention mixes.
        ema_projection_size: Moving averages of each feature.
        bidirectional: Whether averages run both ways.
        shared_representation_size: Width of queries and keys.
        use_chunking: Whether attention stays within chunks of `chunk_size` tokens.
        truncation: How many tokens an average reaches back; None for all.
        normalization_type: `scalenorm`, `layernorm` or `rmsnorm`.
        attention_activation: `softmax`, `laplace` or `relu2`.
        max_positions: Longest text of a `simple` bias without chunks.
        relative_positional_bias: `rotary` or `simple`.
        is_decoder: Whether a token sees only those before it.
    """

    model_type = "mega"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 128,
        num_hidden_layers: int = 4,
        intermediate_size: int = 256,
        ema_projection_size: int = 16,
        bidirectional: bool = True,
        shared_representation_size: int = 64,
        use_chunking: bool = False,
        chunk_size: int = -1,
        truncation: int | None = None,
        normalize_before_mega: bool = True,
        normalization_type: str = "scalenorm",
        norm_affine: bool = True,
        activation: str = "silu",
        attention_activation: str = "softmax",
        dropout_prob: float = 0.1,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        use_feature_dropout: bool = False,
        use_normalized_ffn: bool = True,
        nffn_hidden_size: int = 256,
        normalize_before_ffn: bool = True,
        nffn_activation_dropout_prob: float = 0.1,
        max_positions: int = 2048,
        add_token_type_embeddings: bool = False,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        ema_delta_alpha_range: float = 0.2,
        ema_beta_range: float = 0.02,
        ema_gamma_omega_range: float = 1.0,
        relative_positional_bias: str = "rotary",
        is_decoder: bool = False,
        add_lm_hidden_dense_layer: bool = True,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        pad_token_id: int | None = 1,
        bos_token_id: int | None = 0,
        eos_token_id: int | None = 2,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = 1
        self.intermediate_size = intermediate_size
        self.ema_projection_size = ema_projection_size
        self.bidirectional = bidirectional
        self.shared_representation_size = shared_representation_size
        self.use_chunking = use_chunking
        self.chunk_size = chunk_size
        self.truncation = truncation
        self.normalize_before_mega = normalize_before_mega
        self.normalization_type = normalization_type
        self.norm_affine = norm_affine
        self.activation = activation
        self.attention_activation = attention_activation
        self.dropout_prob = dropout_prob
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.use_feature_dropout = use_feature_dropout
        self.use_normalized_ffn = use_normalized_ffn
        self.nffn_hidden_size = nffn_hidden_size
        self.normalize_before_ffn = normalize_before_ffn
        self.nffn_activation_dropout_prob = nffn_activation_dropout_prob
        self.max_positions = max_positions
        self.add_token_type_embeddings = add_token_type_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.ema_delta_alpha_range = ema_delta_alpha_range
        self.ema_beta_range = ema_beta_range
        self.ema_gamma_omega_range = ema_gamma_omega_range
        self.relative_positional_bias = relative_positional_bias
        self.add_lm_hidden_dense_layer = add_lm_hidden_dense_layer
        self.use_cache = use_cache
        kwargs.pop("num_attention_heads", None)  # there is one
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            is_decoder=is_decoder,
            **kwargs,
        )

    @property
    def known_distance(self) -> int:
        """The number of a `simple` bias that is of distance 0."""
        return (self.chunk_size if self.chunk_size > 0 else self.max_positions) - 1
