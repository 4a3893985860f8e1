"""A RoBERTa that is as small as it can be, as `transformers` and the Hub have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

POSITIONS = 30
VOCABULARY = 261


def tiny_roberta(**changes: Any) -> transformers.RobertaForMaskedLM:
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": POSITIONS + 2,
        "type_vocab_size": 1,
        "initializer_range": 0.3,
        "layer_norm_eps": 1e-5,
    }
    torch.manual_seed(0)
    model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**values | changes))
    # Fresh norms and biases are ones and zeros, which many mistakes leave as they are.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=0.5, std=0.3)
    return model.eval()


def write_roberta(folder: Path, **changes: Any) -> transformers.RobertaForMaskedLM:
    """The folder of a checkpoint, with the tokenizer's files of 2019."""
    model = tiny_roberta(**changes)
    model.save_pretrained(folder)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *bytes_to_unicode().values(), "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({t: n for n, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 30}')
    return model


def write_legacy(folder: Path, model: transformers.PreTrainedModel) -> None:
    """Puts the weights into a pickle, as in 2019: with a pooler and a buffer, without the tied."""
    kind = model.config.model_type
    width, rows = model.config.hidden_size, model.config.max_position_embeddings
    state = {n: w for n, w in model.state_dict().items() if not n.startswith("lm_head.decoder")}
    state |= {
        f"{kind}.embeddings.position_ids": torch.arange(rows)[None],
        f"{kind}.pooler.dense.weight": torch.ones(width, width),
        f"{kind}.pooler.dense.bias": torch.ones(width),
    }
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink(missing_ok=True)
