"""A small model that remembers: what it says of a row depends on the rows before."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from lsp.core.batch import IGNORE_INDEX
from lsp.models.interface import LanguageModel
from tests.data.rows import VOCABULARY

WIDTH, MEMORY = 8, 40


class Remembering(LanguageModel):
    """Each token sees a weighted sum of its own state and those of up to `MEMORY` tokens before.

    The memory holds states as the weights of their time made them, so it cannot be made again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=VOCABULARY.size)
        self.embedding = nn.Embedding(VOCABULARY.size, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY.size)
        self._memory: dict[str, torch.Tensor] | None = None
        self._left: dict[str, torch.Tensor] | None = None
        self.read: list[int] = []

    def forward(self, input_ids, labels, segment_ids=None, position_ids=None):
        scores_BLV = self.logits(input_ids, segment_ids, position_ids)
        loss = F.cross_entropy(scores_BLV.flatten(0, 1), labels.flatten(), reduction="sum")
        return loss, (labels != IGNORE_INDEX).sum()

    def logits(self, input_ids, segment_ids=None, position_ids=None):
        states_BLD = self.mix(self.embedding(input_ids)).tanh()
        memory, self._memory = self._memory, None
        past = 0 if memory is None else memory["layer_0"].shape[1]
        self.read.append(past)
        if memory is not None:
            states_BLD = torch.cat([memory["layer_0"], states_BLD], dim=1)
        self._left = {"layer_0": states_BLD[:, -MEMORY:].detach()}
        # Window sums from differences of running ones.
        sums_BLD = F.pad(states_BLD, (0, 0, MEMORY + 1, 0)).cumsum(1)
        seen_BLD = sums_BLD[:, MEMORY + 1 :] - sums_BLD[:, : -MEMORY - 1]
        return self.head(seen_BLD[:, past:])

    def recall(self, memory):
        self._memory = memory

    def remembered(self):
        return self._left

    def flops_per_token(self, sequence_length):
        return 1.0

    def begin_micro_batch(self, seed, first_row=0):
        pass
