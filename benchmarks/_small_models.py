"""Small models and rows for them, to compare how they are trained."""

from __future__ import annotations

import numpy as np
import torch

from data_pipelines.packing import concatenate
from lsp.data.batches import BatchMaker, Share, TrainingBatches
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives import Vocabulary
from lsp.models import registry
from lsp.models.interface import LanguageModel
from lsp.models.longformer_config import LongformerConfig
from lsp.models.memory import MemoryConfig
from lsp.models.reformer_config import ReformerConfig
from lsp.models.transformer_xl_config import TransformerXLConfig

LENGTH, VOCABULARY = 128, 64


class Rows:
    """Packed rows: documents of counting tokens, each with a stride of its own, then padding."""

    def __len__(self) -> int:
        return 64

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(index)
        ids, segments = np.zeros(LENGTH, np.int64), np.zeros(LENGTH, np.int64)
        start, filled = 0, LENGTH - int(generator.integers(0, LENGTH // 4))
        for number in range(1, LENGTH):
            stop = min(filled, start + int(generator.integers(10, 60)))
            ids[start:stop] = _counting(generator, stop - start)
            segments[start:stop] = number
            start = stop
            if start == filled:
                break
        return ids, segments

    def offset(self, index: int) -> int:
        return 0


class Stream:
    """A running text of such documents, many of them longer than a row, for a memory."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.documents = [_counting(generator, int(generator.integers(10, 400))) for _ in range(50)]
        self.plan = list(concatenate(map(len, self.documents), LENGTH))

    def __len__(self) -> int:
        return len(self.plan)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids, segments = np.zeros(LENGTH, np.int64), np.zeros(LENGTH, np.int64)
        for number, piece in enumerate(self.plan[index], start=1):
            place = slice(piece.position, piece.position + piece.length)
            ids[place] = self.documents[piece.document][piece.start :][: piece.length]
            segments[place] = number
        return ids, segments

    def offset(self, index: int) -> int:
        return self.plan[index][0].start


def _counting(generator: np.random.Generator, length: int) -> np.ndarray:
    first, stride = generator.integers(0, 60), generator.integers(1, 4)
    tokens: np.ndarray = 4 + (first + stride * np.arange(length)) % 60
    return tokens


CONFIGS = {
    "reformer": ReformerConfig(
        attn_layers=["local", "lsh"],
        hidden_size=64,
        feed_forward_size=128,
        num_attention_heads=4,
        attention_head_size=16,
        local_attn_chunk_length=16,
        lsh_attn_chunk_length=16,
        axial_pos_shape=[8, 16],
        axial_pos_embds_dim=[32, 32],
        max_position_embeddings=LENGTH,
        num_buckets=8,
        num_hashes=2,
        vocab_size=VOCABULARY,
        is_decoder=True,
        hidden_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
    ),
    "longformer": LongformerConfig(
        attention_window=[16, 32],
        global_tokens=1,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=LENGTH + 2,
        vocab_size=VOCABULARY,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
    "transformer_xl": TransformerXLConfig(
        d_model=64,
        d_embed=64,
        n_layer=2,
        n_head=4,
        d_head=16,
        d_inner=128,
        mem_len=200,
        same_length=False,
        clamp_len=-1,
        cutoffs=[20, 40],
        div_val=2,
        vocab_size=VOCABULARY,
        dropout=0.0,
    ),
}
OBJECTIVES = {"reformer": "causal", "longformer": "masked", "transformer_xl": "causal"}


def model_of(architecture: str, residual: str) -> LanguageModel:
    """The same weights in every process."""
    torch.manual_seed(0)
    build = registry.get(architecture).build
    return build(CONFIGS[architecture], MemoryConfig(residual=residual))


def batches_of(architecture: str, share: Share) -> TrainingBatches:
    """Rows in the order that the architecture wants."""
    contiguous = registry.get(architecture).remembers
    vocabulary = Vocabulary(size=VOCABULARY, mask_id=3, special_ids=frozenset({0, 3}))
    objective = ObjectiveConfig(OBJECTIVES[architecture])
    rows = Stream() if contiguous else Rows()
    return TrainingBatches(BatchMaker(rows, objective, vocabulary, 0, contiguous=contiguous), share)
