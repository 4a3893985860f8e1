"""Tiny published models with heads, and ours with the same weights."""

from __future__ import annotations

import logging
from typing import Any

import torch
import transformers

from lsp.models.heads.labels import Labels
from lsp.models.heads.models import HeadedModel
from lsp.models.heads.registry import HEADS, build_head
from lsp.models.heads.weights import from_published
from lsp.models.longformer_config import LongformerConfig
from lsp.models.memory import MemoryConfig
from lsp.models.reformer_config import ReformerConfig

torch.set_num_threads(1)
logging.getLogger("transformers").setLevel(logging.ERROR)

LENGTH, VOCABULARY, LABELS = 32, 30, 3
PAD, SEPARATOR = 1, 2
SHAPES: dict[str, dict[str, Any]] = {
    "longformer": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "attention_window": [4, 8],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 66,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.3,
        "layer_norm_eps": 1e-5,
    },
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "num_attention_heads": 3,
        "hidden_size": 16,
        "feed_forward_size": 24,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 16,
        "axial_pos_shape": [4, 8],
        "axial_pos_embds_dim": [4, 12],
        "max_position_embeddings": LENGTH,
        "vocab_size": VOCABULARY,
        "hash_seed": 11,
        "num_buckets": 8,
        "num_hashes": 2,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
    },
}
CONFIGS = {"longformer": LongformerConfig, "reformer": ReformerConfig}
PUBLISHED = [key for key in HEADS if key[0] in SHAPES]
"""Those that the installed `transformers` still has."""
IDS = [f"{architecture}-{task}" for architecture, task in PUBLISHED]


def published(architecture: str, task: str, **values: Any) -> Any:
    """A published model with random weights, in training mode."""
    torch.manual_seed(0)
    shape = SHAPES[architecture] | {"num_labels": LABELS}
    if task == "question_answering":
        shape["num_labels"] = 2
    if architecture == "reformer":
        shape["is_decoder"] = task == "causal_lm"
    kind = type(transformers.AutoConfig.for_model(architecture))
    model_class = getattr(transformers, HEADS[architecture, task].model_class)
    model = model_class(kind(**shape | values)).train()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms are not at their first values for long
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


def ours_of(theirs: Any, task: str, memory: MemoryConfig | None = None) -> HeadedModel:
    """Our model with the same weights."""
    values = theirs.config.to_dict()
    config = CONFIGS[values["model_type"]].from_dict(values)
    ours = build_head(config, task, labels=Labels.of(values), memory=memory)
    state, fresh = from_published(theirs.state_dict(), ours)
    assert fresh == ()
    ours.load_state_dict(state)
    return ours.train()


def inputs_for(
    architecture: str, task: str, *, padded: bool = False, length: int = LENGTH, rows: int = 2
) -> dict[str, torch.Tensor]:
    """Ids, and a mask where rows are padded; rows with separators where a head looks for them."""
    torch.manual_seed(1)
    choices = 3 if task == "multiple_choice" else 1
    ids = torch.randint(SEPARATOR + 1, VOCABULARY, (rows, choices, length))
    if architecture == "longformer" and task in ("question_answering", "multiple_choice"):
        for row in range(rows):
            ids[row, :, [2 + row, 3 + row, length - 9]] = SEPARATOR
    mask = torch.ones_like(ids)
    if padded:
        ids[-1, :, length - 7 :], mask[-1, :, length - 7 :] = PAD, 0
    if task != "multiple_choice":
        ids, mask = ids[:, 0], mask[:, 0]
    return {"input_ids": ids} | ({"attention_mask": mask} if padded else {})


def labels_for(task: str, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Labels of a batch, some of them to be ignored."""
    torch.manual_seed(2)
    rows, length = len(ids), ids.shape[-1]
    if task == "question_answering":
        ends = torch.tensor([length - 10] + [length + 3] * (rows - 1))  # beyond the row: ignored
        return {"start_positions": torch.full((rows,), 8), "end_positions": ends}
    if task == "sequence_classification":
        return {"labels": torch.arange(rows) % LABELS}
    if task == "multiple_choice":
        return {"labels": torch.arange(rows) % 3}
    classes = torch.randint(LABELS, ids.shape) if task == "token_classification" else ids
    ignored = (torch.rand(ids.shape) < 0.5) | (ids == PAD)
    return {"labels": classes.masked_fill(ignored, -100)}
