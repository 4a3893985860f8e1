"""The smallest model of every row, and batches for it."""

from __future__ import annotations

from typing import Any

import torch

from lsp.models.hub.adapter import HubModel
from lsp.models.hub.build import begin, build
from lsp.models.hub.config import HubConfig, resolve
from lsp.models.hub.example import example
from lsp.models.hub.table import ROWS
from lsp.models.memory import MemoryConfig

LENGTH, VOCABULARY = 32, 40
SPECIAL_IDS = {"pad": 0, "eos": 1, "unk": 2, "mask": 3, "bos": 4, "cls": 5, "sep": 6}

BERT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
LLAMA = BERT | {"num_key_value_heads": 1}
GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2}
BART: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
XLM: dict[str, Any] = {"emb_dim": 16, "n_layers": 2, "n_heads": 2}
PROPHETNET: dict[str, Any] = {
    "hidden_size": 16,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
EXPERTS = {"num_experts": 2, "encoder_sparse_step": 2, "decoder_sparse_step": 2}

TINY: dict[str, dict[str, Any]] = {
    "albert": BERT | {"embedding_size": 8},
    "big_bird": BERT | {"block_size": 2, "num_random_blocks": 1},
    "bigbird_pegasus": BART | {"block_size": 2, "num_random_blocks": 1},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "codegen": GPT2 | {"n_head": 4, "rotary_dim": 2},
    "ctrl": GPT2 | {"dff": 24},
    "deberta": BERT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": BERT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "electra": BERT | {"embedding_size": 8},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "flaubert": XLM,
    "fnet": {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24},
    "gemma": LLAMA | {"head_dim": 8},
    "git": BERT
    | {
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 16,
            "patch_size": 8,
        }
    },
    "gpt-sw3": GPT2,
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neox_japanese": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_multiple_size": 2,
    },
    "gptj": GPT2 | {"rotary_dim": 4},
    "imagegpt": GPT2,
    "led": BART | {"attention_window": 8},
    "longformer": BERT | {"attention_window": 8},
    "longt5": T5 | {"local_radius": 4, "global_block_size": 4},
    "luke": BERT | {"entity_vocab_size": 8, "entity_emb_size": 8},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "markuplm": BERT
    | {"max_depth": 2, "xpath_unit_hidden_size": 4, "tag_pad_id": 8, "subs_pad_id": 8}
    | {"max_xpath_tag_unit_embeddings": 10, "max_xpath_subs_unit_embeddings": 10},
    "mixtral": LLAMA | {"num_local_experts": 4},
    "mobilebert": BERT
    | {"embedding_size": 8, "intra_bottleneck_size": 8, "num_feedforward_networks": 1},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2},
    "mra": BERT | {"hidden_size": 32},
    "nllb-moe": BART | EXPERTS,
    "nystromformer": BERT | {"num_landmarks": 8, "conv_kernel_size": 3},
    "openai-gpt": GPT2,
    "opt": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "word_embed_proj_dim": 16,
    },
    "pegasus_x": BART | {"block_size": 8, "num_global_tokens": 4},
    "persimmon": BERT,
    "phi": BERT,
    "prophetnet": PROPHETNET,
    "rembert": BERT | {"input_embedding_size": 8, "output_embedding_size": 12},
    "roc_bert": BERT
    | {"shape_embed_dim": 4, "pronunciation_embed_dim": 4}
    | {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
    "roformer": BERT | {"embedding_size": 8},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16},
    "squeezebert": BERT
    | {"embedding_size": 16}
    | {f"{name}_groups": 2 for name in ("q", "k", "v", "intermediate", "output")},
    "switch_transformers": T5
    | {"num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "t5": T5,
    "visual_bert": BERT | {"visual_embedding_dim": 8},
    "xglm": {"d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 24},
    "xlm": XLM,
    "xlm-prophetnet": PROPHETNET,
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
    "yoso": BERT,
}
"""By model type; what is missing is as BERT's, Llama's or BART's."""

LIKE_LLAMA = ("code_llama", "cohere", "llama", "qwen2", "stablelm", "starcoder2")


def tiny(model_type: str) -> dict[str, Any]:
    """A `model_init_config` that is built and trained in a moment."""
    if model_type in TINY:
        return dict(TINY[model_type])
    if model_type in LIKE_LLAMA:
        return dict(LLAMA)
    return dict(BART if ROWS[model_type].kind == "encoder_decoder" else BERT)


def settled(model_type: str, objective: str, **changes: Any) -> HubConfig:
    """The config of a tiny model for an objective; `changes` are keys of `model_init_config`."""
    config = HubConfig(model_type=model_type, model_init_config=tiny(model_type) | changes)
    return resolve(
        config,
        vocab_size=VOCABULARY,
        sequence_length=LENGTH,
        objective=objective,
        special_ids=SPECIAL_IDS,
    )


def built(
    model_type: str, objective: str, memory: MemoryConfig | None = None, **changes: Any
) -> HubModel:
    """A tiny model, always with the same weights, ready to be trained."""
    torch.manual_seed(0)
    model = build(settled(model_type, objective, **changes), memory)
    begin(model, True)
    return model


def batch_for(objective: str, rows: int = 2) -> dict[str, torch.Tensor]:
    """Rows such as an objective gives, without special tokens."""
    return example(objective, LENGTH, VOCABULARY, rows, first_id=len(SPECIAL_IDS))
