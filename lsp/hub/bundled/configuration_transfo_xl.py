"""Configuration of Transformer-XL (1901.02860), which `transformers` had up to 4.x."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PretrainedConfig


class TransfoXLConfig(PretrainedConfig):
    """The published options, and some beside them.

    Attributes:
        tgt_len: Length of the rows that learned positions (`attn_type` 1 and 3) are made for,
            beside `mem_len`.
        zero_memory: Whether a text is preceded by `mem_len` states of zeros, as in the published
            model; otherwise by nothing.
        memory_across_documents: Whether the model was trained to read on from one text to the next.
    """

    model_type = "transfo-xl"
    keys_to_ignore_at_inference = ("mems",)
    attribute_map: ClassVar[dict[str, str]] = {
        "n_token": "vocab_size",
        "hidden_size": "d_model",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size: int = 267735,
        cutoffs: list[int] | tuple[int, ...] = (20000, 40000, 200000),
        d_model: int = 1024,
        d_embed: int = 1024,
        n_head: int = 16,
        d_head: int = 64,
        d_inner: int = 4096,
        div_val: int = 4,
        pre_lnorm: bool = False,
        n_layer: int = 18,
        mem_len: int = 1600,
        clamp_len: int = 1000,
        same_length: bool = True,
        proj_share_all_but_first: bool = True,
        attn_type: int = 0,
        sample_softmax: int = -1,
        adaptive: bool = True,
        dropout: float = 0.1,
        dropatt: float = 0.0,
        untie_r: bool = True,
        init: str = "normal",
        init_range: float = 0.01,
        proj_init_std: float = 0.01,
        init_std: float = 0.02,
        layer_norm_epsilon: float = 1e-5,
        eos_token_id: int | None = 0,
        tie_projs: list[bool] | None = None,
        tie_word_embeddings: bool = True,
        tgt_len: int = 0,
        zero_memory: bool = True,
        memory_across_documents: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.cutoffs = list(cutoffs)
        self.d_model = d_model
        self.d_embed = d_embed
        self.n_head = n_head
        self.d_head = d_head
        self.d_inner = d_inner
        self.div_val = div_val
        self.pre_lnorm = pre_lnorm
        self.n_layer = n_layer
        self.mem_len = mem_len
        self.clamp_len = clamp_len
        self.same_length = same_length
        self.proj_share_all_but_first = proj_share_all_but_first
        self.attn_type = attn_type
        self.sample_softmax = sample_softmax
        self.adaptive = adaptive
        self.dropout = dropout
        self.dropatt = dropatt
        self.untie_r = untie_r
        self.init = init
        self.init_range = init_range
        self.proj_init_std = proj_init_std
        self.init_std = init_std
        self.layer_norm_epsilon = layer_norm_epsilon
        self.tie_projs = tie_projs or [False] + [proj_share_all_but_first] * len(self.cutoffs)
        self.tgt_len = tgt_len
        self.zero_memory = zero_memory
        self.memory_across_documents = memory_across_documents
        super().__init__(
            eos_token_id=eos_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs
        )

    @property
    def cluster_ends(self) -> list[int]:
        """One past the last token of each cluster, the likeliest tokens first."""
        return [*self.cutoffs, self.vocab_size]
